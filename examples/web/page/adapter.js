/** The name of the adapter that the page gets, as far as the browser tells. */
export async function adapterName() {
  const { info } = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
  return info.description || [info.vendor, info.architecture].filter(Boolean).join(" ") || "unknown";
}
