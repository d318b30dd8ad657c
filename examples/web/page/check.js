// Runs the tests and posts what comes out. Then looks at the page itself.
import init, { check } from "./adamod_web.js";
import { adapterName } from "./adapter.js";

let last = Promise.resolve();
/** Posts in order. */
function report(kind, json) {
  last = last.then(() => fetch("report", { method: "POST", body: `${kind}\n${json}` }));
  return last;
}

const fail = (error) => report("failed", JSON.stringify(String(error?.stack ?? error)));
addEventListener("error", (event) => fail(event.error ?? event.message));
addEventListener("unhandledrejection", (event) => fail(event.reason));

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Waits until something holds in a document; `found` says what it shows instead. */
async function appears(what, holds, found = () => "nothing") {
  for (let tries = 0; tries < 2000; tries++) {
    if (holds()) return;
    await pause(100);
  }
  throw new Error(`the page: expected ${what}, got ${found()}`);
}

async function frame(content) {
  const frame = document.createElement("iframe");
  frame.style = "width: 900px; height: 1200px";
  if (content === undefined) frame.src = "index.html";
  else frame.srcdoc = content;
  document.body.append(frame);
  await new Promise((resolve) => frame.addEventListener("load", resolve));
  return frame;
}

async function checkPage() {
  const { contentDocument, contentWindow } = await frame();
  const element = (id) => contentDocument.getElementById(id);
  const text = (id) => element(id).textContent;
  /** Waits until the page shows something, or that it failed. */
  const until = (what, holds) => appears(what, () => {
    if (!element("failed").hidden) throw new Error(`the page: ${text("failed")}, expected ${what}`);
    return holds();
  }, () => `epoch ${text("epoch")}, "${text("rates-text")}", the button "${text("train")}"`);
  await until("two epochs", () => parseInt(text("epoch")) >= 2);
  await until("three curves", () => element("losses").querySelectorAll("polyline").length >= 3);
  await until("a histogram", () => element("rates").querySelector("polygon"));
  await until("an accuracy", () => parseFloat(text("accuracy")) > 0);
  await until("a speed", () => parseInt(text("speed")) > 0);
  await until("an adapter", () => text("adapter").length > 1);
  const { left, top, width, height } = element("pad").getBoundingClientRect();
  const pointer = (kind, x, y) => element("pad").dispatchEvent(new contentWindow.PointerEvent(kind, {
    clientX: left + x * width, clientY: top + y * height, bubbles: true,
  }));
  pointer("pointerdown", 0.5, 0.1);
  pointer("pointermove", 0.5, 0.9);
  pointer("pointerup", 0.5, 0.9);
  const shown = () => [...contentDocument.querySelectorAll("#probabilities span")].map((span) => parseFloat(span.textContent));
  await until("ten probabilities", () => shown().length === 10 && Math.abs(shown().reduce((a, b) => a + b) - 100) < 1);
  const rule = element("rule");
  for (const index of [rule.options.length - 1, 0]) {
    rule.selectedIndex = index;
    // From there on the page counts anew.
    rule.dispatchEvent(new contentWindow.Event("change"));
    element("rates-text").textContent = "";
    await until(`two epochs with ${rule.value}`, () => text("rates-text") !== "" && parseInt(text("epoch")) >= 2);
    await report("progress", JSON.stringify(rule.value));
  }
  await report("page", JSON.stringify({ adapter: text("adapter"), rules: rule.options.length }));
  element("settings").requestSubmit();

  // The same page where there is no WebGPU.
  const source = await (await fetch("index.html")).text();
  const without = "<script>Object.defineProperty(navigator, 'gpu', { value: undefined });</scr" + "ipt>";
  const old = await frame(source.replace("<head>", `<head>${without}`));
  const missing = () => old.contentDocument.getElementById("missing");
  await appears("a sentence without WebGPU", () => missing() && !missing().hidden && missing().textContent.includes("WebGPU"));
}

try {
  await init({ module_or_path: new URL("adamod_web_bg.wasm", import.meta.url) });
  const parameters = new URLSearchParams(location.search);
  await report("adapter", JSON.stringify(await adapterName()));
  await check(parameters.has("all"), report);
  await checkPage();
  await report("done", "null");
} catch (error) {
  await fail(error);
}
