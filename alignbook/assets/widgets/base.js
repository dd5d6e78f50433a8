// Shared by every widget. Text of a model reaches the page only through textContent, never as markup.
const build = (node, attrs, kids) => {
  for (const [name, value] of Object.entries(attrs || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...kids.flat(Infinity));
  return node;
};
const h = (tag, attrs, ...kids) => build(document.createElement(tag), attrs, kids);
const s = (tag, attrs, ...kids) => build(document.createElementNS("http://www.w3.org/2000/svg", tag), attrs, kids);
const num = (x, digits = 3) => {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e6 || size < 1e-4) return x.toExponential(1);
  return Number(x.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
};
const percent = (p) => `${num(100 * p)} %`;
const quantile = (sorted, q) => sorted[Math.max(0, Math.ceil(q * sorted.length) - 1)];  // numpy's inverted_cdf
const chooser = (name, options, onchange) => {
  const select = h("select", { onchange: () => onchange(select.value) }, options.map((o) => h("option", { value: o, text: o })));
  return [h("label", {}, h("span", { text: name }), select), select];
};
const slider = (name, max, value, oninput) => {
  const input = h("input", { type: "range", min: 0, max, step: 1, value, oninput: () => oninput(+input.value) });
  return [h("label", { class: "ab-wide" }, h("span", { text: name }), input), input];
};
function boot(kind, draw) {
  for (const root of document.querySelectorAll(`[data-widget="${kind}"]:not([data-ready])`)) {
    root.dataset.ready = "1";
    const same = document.querySelectorAll(`[id="${root.id}"]`).length;
    if (same > 1) root.id = `${root.id}-${document.querySelectorAll(`[id^="${root.id}"]`).length}`;
    const stage = root.querySelector(".ab-stage");
    const fail = (error) => {
      stage.append(h("p", { class: "ab-note", text: `This view could not start (${error.message}); its data is below.` }));
      const table = root.querySelector("details");
      if (table) table.open = true;
    };
    try {
      const drawn = draw(stage, JSON.parse(root.querySelector('script[type="application/json"]').textContent), root);
      if (drawn) drawn.catch(fail);
    } catch (error) {
      fail(error);
    }
  }
}
async function unpack(text) {  // what explorers.packed made: JSON, deflated, in base 85
  const sign = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;,=>?@^_`{|}~";
  const view = new DataView(new ArrayBuffer(4 * Math.ceil(text.length / 5)));
  for (let i = 0; i < text.length; i += 5)
    view.setUint32((i / 5) * 4, [...text.slice(i, i + 5).padEnd(5, "~")].reduce((x, c) => 85 * x + sign.indexOf(c), 0));
  const bytes = view.buffer.slice(0, Math.floor(text.length * 0.8));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).json();
}
