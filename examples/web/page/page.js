import init, { Page } from "./adamod_web.js";
import { adapterName } from "./adapter.js";

const EPOCHS = 60;
const PAD_PIXELS = 256;
const PEN_PIXELS = 26;

const element = (id) => document.getElementById(id);
const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;

let page;
/** Counts the runs that were started, so that an older one notices that it is over. */
let run = 0;
let isTraining = false;

/** The page's device does one thing after the other. */
let last = Promise.resolve();
function inTurn(work) {
  const result = last.then(work);
  last = result.catch(() => {});
  return result;
}

function fail(error) {
  console.error(error);
  isTraining = false;
  showButton();
  element("failed").textContent = `Something failed: ${error.message ?? error}`;
  element("failed").hidden = false;
}

function showButton() {
  element("train").textContent = isTraining ? "Stop" : "Train";
}

/** Draws a picture as wide as its place. */
function show(id, draw) {
  const place = element(id);
  const width = Math.max(300, Math.floor(place.clientWidth));
  place.innerHTML = draw(width, Math.floor(Math.min(420, Math.max(320, 0.66 * width)))) ?? "";
}

function showPictures() {
  show("losses", (width, height) => page.loss_picture(width, height));
  show("rates", (width, height) => page.rates_picture(width, height));
}

function showProgress(seconds) {
  const { epoch, steps, accuracy, clipped } = JSON.parse(page.progress());
  element("epoch").textContent = `${epoch} of ${EPOCHS}`;
  element("accuracy").textContent = percent(accuracy);
  element("clipped").textContent = clipped === null ? "–" : percent(clipped);
  element("speed").textContent = seconds > 0 ? Math.round(steps / seconds).toLocaleString("en") : "–";
  const rule = element("rule");
  const name = rule.options[rule.selectedIndex].text;
  element("rates-text").textContent = {
    adamod: `η is Adam’s rate of a weight, s its average over time. AdaMod uses the smaller one: in the last epoch s bounded ${percent(clipped ?? 0)} of all rates.`,
  }[rule.value] ?? (clipped === null ? `${name} has one learning rate for all weights.` : `${name} bounds no rate.`);
}

async function train() {
  const mine = ++run;
  isTraining = true;
  showButton();
  element("failed").hidden = true;
  element("epoch").textContent = `0 of ${EPOCHS}`;
  const value = (id) => element(id).value;
  await inTurn(() => page.start(value("rule"), +value("learning-rate"), +value("beta3"), +value("seed"), EPOCHS));
  const start = performance.now();
  while (mine === run && isTraining) {
    const isLeft = await inTurn(() => page.train_epoch());
    if (mine !== run || !isLeft) break;
    showProgress((performance.now() - start) / 1000);
    showPictures();
    await recognise();
    // Lets the browser paint, which it does not do where nobody looks.
    await Promise.race([new Promise(requestAnimationFrame), new Promise((resolve) => setTimeout(resolve, 100))]);
  }
  // The page and the button are a newer run's.
  if (mine !== run) return;
  isTraining = false;
  showButton();
}

// The field to draw in.

const pad = element("pad");
const ink = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
ink.canvas.width = ink.canvas.height = PAD_PIXELS;
let pen = null;
let isDrawn = false;

function place(event) {
  const { left, top, width, height } = pad.getBoundingClientRect();
  return [((event.clientX - left) / width) * PAD_PIXELS, ((event.clientY - top) / height) * PAD_PIXELS];
}

function line(from, to) {
  const shown = pad.getContext("2d");
  shown.strokeStyle = getComputedStyle(pad).color;
  for (const context of [ink, shown]) {
    context.lineWidth = PEN_PIXELS;
    context.lineCap = "round";
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
  }
  isDrawn = true;
}

function clear() {
  for (const context of [ink, pad.getContext("2d")]) context.clearRect(0, 0, PAD_PIXELS, PAD_PIXELS);
  isDrawn = false;
  showProbabilities([]);
}

function showProbabilities(probabilities) {
  const most = Math.max(...probabilities);
  [...element("probabilities").children].forEach((row, digit) => {
    const probability = probabilities[digit];
    row.classList.toggle("most", probability === most);
    row.querySelector("meter").value = probability ?? 0;
    row.querySelector("span").textContent = probability === undefined ? "" : percent(probability);
  });
}

async function recognise() {
  if (!isDrawn || run === 0) return;
  const { data } = ink.getImageData(0, 0, PAD_PIXELS, PAD_PIXELS);
  const alpha = Uint8Array.from({ length: PAD_PIXELS * PAD_PIXELS }, (_, i) => data[4 * i + 3]);
  showProbabilities([...(await inTurn(() => page.recognise(alpha, PAD_PIXELS)))]);
}

pad.addEventListener("pointerdown", (event) => {
  if (event.isTrusted) pad.setPointerCapture(event.pointerId);
  pen = place(event);
  line(pen, pen);
});
pad.addEventListener("pointermove", (event) => {
  if (pen === null) return;
  const next = place(event);
  line(pen, next);
  pen = next;
});
for (const kind of ["pointerup", "pointercancel"]) {
  pad.addEventListener(kind, () => {
    pen = null;
    if (!isTraining) recognise().catch(fail);
  });
}
element("clear").addEventListener("click", clear);

async function open() {
  if (!navigator.gpu) {
    element("missing").hidden = false;
    return;
  }
  await init({ module_or_path: new URL("adamod_web_bg.wasm", import.meta.url) });
  page = await Page.open();
  element("adapter").textContent = element("adapter").title = await adapterName();
  for (const { name, title } of JSON.parse(page.rules())) element("rule").add(new Option(title, name));
  for (let digit = 0; digit < 10; digit++) {
    const row = document.createElement("li");
    row.innerHTML = `${digit}<meter min="0" max="1" value="0"></meter><span></span>`;
    element("probabilities").append(row);
  }
  element("demo").hidden = false;
  element("settings").addEventListener("submit", (event) => {
    event.preventDefault();
    if (isTraining) isTraining = false;
    else train().catch(fail);
  });
  for (const id of ["rule", "learning-rate", "beta3"]) element(id).addEventListener("change", () => train().catch(fail));
  addEventListener("resize", () => run > 0 && inTurn(showPictures).catch(fail));
  await train();
}

open().catch(fail);
