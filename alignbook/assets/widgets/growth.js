// A prompt that grows shot by shot, beside what the model did at each length.
boot("growth", (stage, { shots, target, curve }, root) => {
  const steps = curve.length ? curve.map((c) => c.n) : shots.map((_, i) => i).concat(shots.length);
  const turn = (role, text, label) => h("div", { class: "ab-turn", "data-role": role }, h("b", { text: label || role }), h("span", { text }));
  const pair = (i) => [turn("user", shots[i][0], `user, shot ${i + 1}`), turn("assistant", shots[i][1])];
  const chat = h("div"), side = h("div"), said = h("output", { role: "status" });
  const [label, input] = slider("Shots in the prompt", steps.length - 1, 0, show);
  const W = 300, H = 150, top = 14, base = H - 26;
  const px = (i) => 34 + (i * (W - 48)) / Math.max(1, steps.length - 1), py = (p) => base - p * (base - top);
  const dot = s("circle", { r: 6, class: "ab-dot" });
  function plot() {
    if (!curve.length) return [];
    const line = curve.map((c, i) => [px(i), c.p]).filter((c) => c[1] !== null).map(([x, p]) => `${x},${py(p)}`).join(" ");
    const ticks = [0, 0.5, 1].map((p) => [s("line", { class: "ab-grid", x1: 34, x2: W - 14, y1: py(p), y2: py(p) }),
      s("text", { x: 30, y: py(p) + 4, "text-anchor": "end", "font-size": 11, text: `${100 * p}%` })]);
    const ends = [0, steps.length - 1].map((i) => s("text", { x: px(i), y: H - 8, "text-anchor": "middle", "font-size": 11, text: steps[i] }));
    return [s("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Probability of the answer against the number of shots" },
      ticks, ends, s("text", { x: W / 2, y: H - 8, "text-anchor": "middle", "font-size": 11, text: "shots" }),
      s("polyline", { class: "ab-fit", points: line }), dot),
      h("p", { class: "ab-note", text: "Probability of the demonstrated answer, or share of replies that show it." })];
  }
  function show(i) {
    const n = steps[i], shown = Math.min(n, shots.length), seen = curve[i];
    const ids = shown <= 4 ? [...Array(shown).keys()] : [0, 1, null, shown - 2, shown - 1];
    chat.replaceChildren(...ids.flatMap((k) => k === null ? [h("p", { class: "ab-cut", text: `… ${shown - 4} more …` })] : pair(k)),
      turn("target", target, "user, the real question"));
    let text = `${n} ${n === 1 ? "shot" : "shots"}.`;
    if (seen) {
      if (seen.p !== null) { text += ` Probability ${percent(seen.p)}.`; dot.setAttribute("cx", px(i)); dot.setAttribute("cy", py(seen.p)); }
      if (seen.nll !== null) text += ` Cost ${num(seen.nll)} nats.`;
      if (seen.answer) chat.append(turn("assistant", seen.answer, "assistant, what the model wrote"));
    }
    said.textContent = text;
    label.firstChild.textContent = `Shots in the prompt: ${n}`;
    input.setAttribute("aria-valuetext", `${n} shots`);
  }
  side.append(...plot(), said);
  stage.append(h("div", { class: "ab-bar" }, label), h("div", { class: "ab-two ab-small" }, chat, side));
  show(0);
});
