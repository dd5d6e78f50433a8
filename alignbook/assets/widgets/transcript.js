// The turns are already in the page; this adds the role filter and the search.
boot("transcript", (stage, data, root) => {
  const turns = [...root.querySelectorAll(".ab-turn")];
  if (turns.length < 4) return;
  const bodies = turns.map((t) => t.querySelector("span")), texts = bodies.map((b) => b.textContent);
  const said = h("span", { class: "ab-note", role: "status" });
  const [roleLabel, role] = chooser("Show", ["all roles", ...new Set(turns.map((t) => t.dataset.role))], show);
  const find = h("input", { type: "search", oninput: show, placeholder: "words" });
  function show() {
    const word = find.value.toLowerCase();
    let count = 0;
    turns.forEach((turn, i) => {
      const found = !word || texts[i].toLowerCase().includes(word);
      turn.hidden = !found || (role.value !== "all roles" && turn.dataset.role !== role.value);
      count += !turn.hidden;
      paint(bodies[i], texts[i], word);
    });
    said.textContent = `${count} of ${turns.length} turns`;
  }
  function paint(body, text, word) {
    body.textContent = word ? "" : text;
    for (let at = 0, low = text.toLowerCase(); word && at <= text.length; ) {
      const hit = low.indexOf(word, at), end = hit < 0 ? text.length : hit;
      body.append(text.slice(at, end));
      if (hit < 0) break;
      body.append(h("mark", { text: text.slice(hit, hit + word.length) }));
      at = hit + word.length;
    }
  }
  stage.append(h("div", { class: "ab-bar" }, roleLabel, h("label", {}, h("span", { text: "Search" }), find), said));
  show();
});
