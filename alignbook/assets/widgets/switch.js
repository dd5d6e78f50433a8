// One conversation under one of several conditions; a choice swaps the prompt and the answer.
boot("switch", (stage, { by, choices, mark, items, turns }, root) => {
  let at = 0, chosen = 0;
  const marked = (text) => {
    const out = [];
    for (let from = 0; from < text.length; ) {
      const hits = mark.map((m) => [text.indexOf(m, from), m]).filter(([i]) => i >= 0);
      const [i, m] = hits.sort((a, b) => a[0] - b[0] || b[1].length - a[1].length)[0] || [text.length, ""];
      out.push(h("span", { text: text.slice(from, i) }), m ? h("mark", { text: m }) : []);
      from = i + m.length;
    }
    return out;
  };
  const turn = (role, label, text) => h("div", { class: "ab-turn", "data-role": role }, h("b", { text: label }), h("span", {}, marked(text)));
  const show = () => {
    const said = turns[at][chosen];
    talk.replaceChildren(...(said
      ? [turn("user", `Prompt, ${by}: ${choices[chosen]}`, said[0]), turn("assistant", "Answer", said[1])]
      : [h("p", { class: "ab-note", text: "not measured" })]));
  };
  const name = `${root.id}-by`;
  const radio = (text, i) => h("label", { class: "ab-row" },
    h("input", { type: "radio", name, checked: i === 0, onchange: () => { chosen = i; show(); } }), h("span", { text }));
  const talk = h("div", { "aria-live": "polite" });
  const [label, select] = chooser("Conversation", items, () => { at = select.selectedIndex; show(); });
  stage.append(h("div", { class: "ab-bar" }, items.length > 1 ? label : [],
    h("div", { class: "ab-pair", role: "radiogroup", "aria-label": by }, h("span", { class: "ab-note", text: `${by}:` }), choices.map(radio))), talk);
  show();
});
