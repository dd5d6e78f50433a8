// Tokens coloured by a score: one Tab stop, arrow keys walk, the value is read out.
boot("tokens", (stage, { tokens, scores, unit, center, low, high }, root) => {
  const names = Object.keys(scores), spans = tokens.map((t) => h("span", { tabindex: -1, text: t.replace(/\n/g, "⏎\n") }));
  const box = h("div", { class: "ab-tokens", role: "group", "aria-label": "Tokens; use the arrow keys" }, spans);
  const said = h("output", { role: "status", text: "Point at a token, or focus one and use the arrow keys." });
  const [label, select] = chooser("Score", names, paint);
  const ramp = h("span", { class: "ab-ramp" }), ends = [h("span"), h("span")];
  let here = 0, far = 1, row = [];
  const color = (v) => `rgba(var(${v < center ? "--ab-neg" : "--ab-pos"}),${(0.62 * Math.min(1, Math.abs(v - center) / far)).toFixed(3)})`;
  function paint() {
    row = scores[select.value || names[0]];
    const all = row.filter((v) => v !== null);
    const min = low === null ? Math.min(...all) : low, max = high === null ? Math.max(...all) : high;
    far = Math.max(max - center, center - min) || 1;
    spans.forEach((span, i) => {
      const strong = row[i] !== null && Math.abs(row[i] - center) > far / 2;
      span.style.background = row[i] === null ? "none" : color(row[i]);
      span.style.borderBottomColor = strong ? "currentColor" : "transparent";
      span.className = row[i] < center ? "ab-neg" : "";
    });
    const from = min < center ? center - far : center, to = max > center ? center + far : center;
    const at = [0, 0.25, 0.5, 0.75, 1].map((q) => color(from + q * (to - from)));
    ramp.style.background = `linear-gradient(90deg,${at.join(",")})`;
    [ends[0].textContent, ends[1].textContent] = [`${num(from)} ${unit}`, `${num(to)} ${unit}`];
  }
  const tell = (i) => { said.textContent = `Token ${i + 1} of ${tokens.length}, “${tokens[i].trim() || "space"}”: ${num(row[i])} ${unit}`; };
  function walk(to) {
    spans[here].tabIndex = -1;
    here = Math.max(0, Math.min(spans.length - 1, to));
    spans[here].tabIndex = 0;
    spans[here].focus();
  }
  spans.forEach((span, i) => {
    span.addEventListener("mouseenter", () => tell(i));
    span.addEventListener("focus", () => tell(i));
    span.addEventListener("click", () => walk(i));
  });
  box.addEventListener("keydown", (e) => {
    const to = { ArrowRight: here + 1, ArrowDown: here + 1, ArrowLeft: here - 1, ArrowUp: here - 1, Home: 0, End: spans.length - 1 }[e.key];
    if (to !== undefined) { e.preventDefault(); walk(to); }
  });
  if (spans.length) spans[0].tabIndex = 0;
  stage.append(...(names.length > 1 ? [h("div", { class: "ab-bar" }, label)] : []), box,
    h("div", { class: "ab-legend" }, ends[0], ramp, ends[1], h("span", { text: "underlined: more than half the scale" })), said);
  paint();
});
