(() => {
  const root = document.querySelector(".explorer");
  const policies = JSON.parse(document.getElementById("explorer-data").textContent);
  const select = root.querySelector("select");
  const differing = root.querySelector("input[type=checkbox]");
  const list = root.querySelector(".situations");
  const told = root.querySelector(".told");

  // text is only ever set as text: words of prompts come from outside
  const make = (tag, text, name) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (name) element.className = name;
    return element;
  };

  const agrees = (row) => row.decision === row.oracle;

  const tableOf = (header, rows) => {
    const box = make("div", undefined, "scroll tall");
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "examples");
    const table = box.appendChild(make("table"));
    const head = table.appendChild(make("thead")).appendChild(make("tr"));
    for (const name of header) head.appendChild(make("th", name)).scope = "col";
    const body = table.appendChild(make("tbody"));
    for (const row of rows) {
      const line = body.appendChild(make("tr"));
      for (const cell of row) line.appendChild(make("td", cell));
    }
    return box;
  };

  const show = (row) => {
    const right = agrees(row);
    const words = make("dl", undefined, "words");
    for (const [name, word] of Object.entries(row.context)) {
      words.append(make("dt", name), make("dd", word));
    }
    const odds = make("ul", undefined, "chances");
    for (const [label, p] of Object.entries(row.probabilities)) {
      const item = odds.appendChild(make("li"));
      const bar = item.appendChild(make("meter", String(p)));
      bar.min = 0;
      bar.max = 1;
      bar.value = p;
      item.append(make("span", p.toFixed(2), "share"), make("span", label));
      if (label === row.decision) item.append(make("strong", "decided"));
      if (label === row.oracle) item.append(make("strong", "oracle", "good"));
    }
    const verdict = make(
      "p",
      right
        ? `✓ It decided “${row.decision}”, as the oracle does.`
        : `✗ It decided “${row.decision}”; the oracle would decide “${row.oracle}”.`,
      right ? "good" : "bad",
    );
    told.replaceChildren(
      make("h3", "The situation"), words,
      make("h3", "The decision"), verdict, odds, make("p", `Made by: ${row.made_by}.`, "quiet"),
      make("h3", `The examples shown (${row.examples.length})`),
    );
    if (row.examples.length) {
      const names = Object.keys(row.examples[0].words);
      told.append(
        tableOf(
          [...names, "decision", "reward", "evaluation", "seen"],
          row.examples.map((e) => [
            ...Object.values(e.words), e.decision, String(Number(e.reward.toPrecision(3))),
            e.evaluation, String(e.count),
          ]),
        ),
      );
    } else {
      told.append(make("p", "None: it had no experience to show, or this run kept none.", "quiet"));
    }
    if (row.prompt) {
      told.append(make("h3", "The prompt"), make("pre", row.prompt, "tall-pre"));
    }
  };

  const fill = () => {
    const policy = policies[select.selectedIndex];
    const rows = policy.decisions.filter((row) => !differing.checked || !agrees(row));
    list.replaceChildren();
    rows.forEach((row, i) => {
      const label = list.appendChild(make("label"));
      const radio = label.appendChild(make("input"));
      radio.type = "radio";
      radio.name = "situation";
      radio.checked = i === 0;
      radio.addEventListener("change", () => show(row));
      label.append(make("span", agrees(row) ? "✓" : "✗", agrees(row) ? "good" : "bad"));
      label.append(make("span", Object.values(row.context).join(", ")));
    });
    if (rows.length) show(rows[0]);
    else told.replaceChildren(make("p", "The oracle decides the same everywhere.", "quiet"));
  };

  for (const policy of policies) select.append(make("option", policy.name));
  select.addEventListener("change", fill);
  differing.addEventListener("change", fill);
  fill();
  root.hidden = false;
})();
