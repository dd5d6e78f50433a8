// Moves everything on a page that can be moved, and says what did not change. Used by check_pages.py.
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const fire = (el) => ["input", "change"].forEach((e) => el.dispatchEvent(new Event(e, { bubbles: true })));

async function drawPage() {
  if (window.alignbookDrawAll) await window.alignbookDrawAll();
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  return document.querySelectorAll("div.vega-lite-chart").length;
}

// Each input that is bound to a chart is tried at its ends, or at each of its choices.
async function moveInput(chart, group) {
  const picture = () => chart.querySelector("svg").outerHTML;
  const before = picture(), first = group[0];
  let tries = [first.min, first.max];
  if (first.type === "radio") tries = group;
  else if (first.type === "checkbox") tries = [first];
  else if (first.tagName === "SELECT") tries = [...first.options].map((o) => o.value);
  for (const one of tries) {
    if (one instanceof Element) one.click();
    else { first.value = one; fire(first); }
    await chart.vegaView.runAsync();
    await wait(150);
    if (picture() !== before) return true;
  }
  return false;
}

async function moveCharts() {
  let moved = 0;
  const bad = [];
  for (const chart of document.querySelectorAll("div.vega-lite-chart")) {
    const inputs = [...chart.querySelectorAll(".vega-bind input, .vega-bind select")];
    for (const name of new Set(inputs.map((i) => i.name))) {
      moved += 1;
      if (!await moveInput(chart, inputs.filter((i) => i.name === name))) bad.push(`chart input ${name} changes nothing`);
    }
  }
  return [moved, bad];
}

function moveControl(c) {
  if (c.matches("input[type=range]")) c.value = +c.value >= +c.max ? c.min : c.max;
  else if (c.tagName === "SELECT") c.selectedIndex = (c.selectedIndex + 1) % c.options.length;
  else return c.click();
  fire(c);
}

async function moveWidgets() {
  const kinds = {}, bad = [];
  const controls = "input[type=range], select, button, input[type=checkbox], input[type=radio]";
  for (const root of document.querySelectorAll("[data-widget]")) {
    const kind = root.dataset.widget;
    if (!root.querySelector(".ab-stage")) continue;  // a still: a box of claims, a badge
    root.scrollIntoView();
    await wait(100);
    const list = [...root.querySelectorAll(controls)].filter((c) => !c.disabled && c.offsetParent !== null).slice(0, 12);
    kinds[kind] = (kinds[kind] || 0) + 1;
    if (!list.length) bad.push(`widget ${kind}: nothing to move`);
    const dead = [];
    for (const c of list) {
      if (!c.isConnected) continue;  // a move may draw the controls again
      const before = root.innerHTML;
      moveControl(c);
      await wait(250);
      if (root.innerHTML === before) dead.push(c.getAttribute("aria-label") || c.closest("label")?.textContent || c.textContent || c.type);
    }
    if (list.length && dead.length === list.length) bad.push(`widget ${kind}: moved, and nothing changed`);
    else if (dead.length) console.info(`widget ${kind}: no change from ${dead.join(", ")}`);
  }
  return [kinds, bad];
}
