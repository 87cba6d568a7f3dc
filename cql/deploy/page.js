// Asks the service what its policy does in a cell and why, and draws the answer.
(() => {
  const element = id => document.getElementById(id);
  const LOOK = 3000;  // milliseconds between two looks at which model is in service
  const shown = { map: null, cell: null, observation: null, mask: null, action: null, answer: 0, looks: 0, looked: 0 };

  // ---------------------------------------------------------------------------------------------------- the service

  async function ask(path, body) {  // its answer, or an Error with its sentence and status
    const headers = {}, token = sessionStorage.getItem("token");
    if (token) headers.Authorization = `Bearer ${token}`;
    if (body) headers["Content-Type"] = "application/json";
    let response;
    try {
      response = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
    } catch {
      throw Object.assign(new Error("The service does not answer."), { status: 0 });
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) {
      const sentence = answer.detail || `The service cannot answer: status ${response.status}.`;
      throw Object.assign(new Error(sentence), { status: response.status, answer });
    }
    return answer;
  }

  function trouble(text) {
    element("trouble").textContent = text || "";
    element("trouble").hidden = !text;
  }

  function refused(error) {  // true: said elsewhere than beside the answer
    if (error.status === 401) {
      element("token-form").hidden = false;
      element("asked").hidden = true;
      element("model").textContent = "";
      trouble(sessionStorage.getItem("token") ? "The service does not know this token." : "");
      element("token").focus();
    } else trouble(error.message);
  }

  async function look() {  // is the map that of the model in service?
    const number = ++shown.looks;
    const late = () => number < shown.looked || (shown.looked = number, false);  // a later look has been here
    let state;
    try {
      state = await ask("/readyz");
    } catch (error) {
      if (error.status !== 503 || error.answer.ready === undefined) return late() || trouble(error.message);
      state = error.answer;
    }
    if (!state.ready) {
      if (late()) return;
      shown.map = null;
      forget();
      element("asked").hidden = true;
      element("model").textContent = "No model is in service yet. This page looks again every few seconds.";
      return trouble("");
    }
    if (shown.map && shown.map.model === state.model && shown.sound === state.sound) return late() || trouble("");
    try {
      const [map, models] = await Promise.all([ask("/v1/map"), ask("/v1/models")]);
      if (late()) return;
      const first = shown.map === null;
      shown.map = map;
      shown.sound = state.sound;
      element("token-form").hidden = true;
      trouble("");
      about(models);
      draw();
      if (first) follow();
      else if (shown.observation !== null) explain();
    } catch (error) {
      if (!late()) refused(error);
    }
  }

  function about(models) {
    const entry = models.models.find(model => model.id === shown.map.model), code = document.createElement("code");
    code.textContent = shown.map.model;
    const registered = entry ? entry.registered.slice(0, 10) : "–", count = models.models.length;
    element("model").replaceChildren("Model ", code, `: ${shown.map.member}, registered ${registered}, one of ${count} in the registry. `);
    if (models.problem) {
      const words = document.createElement("span");
      words.className = "warning";
      words.textContent = `It stays because ${models.problem}`;
      element("model").append(words);
    }
  }

  // -------------------------------------------------------------------------------------------------------- the map

  const arrow = (parent, move) => make("path", { class: "arrow", ...arrowOf(move) }, parent);

  const marks = {
    hazard(group) {
      const made = make("g", { class: "hazard" }, group);
      make("rect", { width: 1, height: 1 }, made);
      make("path", { d: "M.3 .3L.7 .7M.7 .3L.3 .7" }, made);
    },
    goal: group => make("path", { d: STAR, transform: "translate(.5 .52)" }, make("g", { class: "goal" }, group)),
    terminal: group => make("rect", { width: 1, height: 1 }, make("g", { class: "terminal" }, group)),
    start: group => make("rect", { class: "start", x: 0.07, y: 0.07, width: 0.86, height: 0.86 }, group),
    greedy: (group, move) => arrow(group, move),
    unsupported(group, move) {
      const made = make("g", { class: "unsupported" }, group);
      make("circle", { class: "disc", cx: 0.5, cy: 0.5, r: 0.44 }, made);
      arrow(made, move);
    },
    unseen(group, move) {
      const made = make("g", { class: "unseen" }, group);
      make("path", { class: "hatch", d: "M0 1L1 0M0 .5L.5 0M.5 1L1 .5" }, made);
      arrow(made, move);
    },
  };

  function draw() {
    const board = shown.map.board, plain = board === null;
    element("asked").hidden = false;
    element("asked").classList.toggle("plain", plain);
    element("map-part").hidden = element("legend").hidden = plain;
    element("observation-part").hidden = !plain;
    if (plain) return describe();
    const svg = element("map"), visits = board.counts.map(row => row.reduce((a, b) => a + b, 0)), most = Math.max(1, ...visits);
    const has = Object.fromEntries(["hazard", "goal", "terminal", "start"].map(name => [name, new Set(board[name])]));
    shown.has = has;
    svg.setAttribute("viewBox", `0 0 ${board.columns} ${board.rows}`);
    svg.replaceChildren();
    visits.forEach((count, s) => {
      const at = `translate(${s % board.columns} ${Math.floor(s / board.columns)})`, group = make("g", { transform: at }, svg);
      make("rect", { class: "ground", width: 1, height: 1 }, group);
      if (has.terminal.has(s)) marks[has.goal.has(s) ? "goal" : has.hazard.has(s) ? "hazard" : "terminal"](group);
      else {
        make("rect", { class: "visits", width: 1, height: 1, "fill-opacity": 0.5 * Math.log1p(count) / Math.log1p(most) }, group);
        const action = board.greedy[s], move = board.moves[action];
        marks[count === 0 ? "unseen" : board.counts[s][action] === 0 ? "unsupported" : "greedy"](group, move);
      }
      if (has.start.has(s)) marks.start(group);
    });
    for (const id of ["cursor", "cursor-line"]) make("rect", { id, width: 1, height: 1, visibility: "hidden" }, svg);
    element("most").textContent = `${most.toLocaleString("en")} transitions in the data (shade, log scale)`;
    document.querySelectorAll("[data-symbol]").forEach(symbol => {
      symbol.replaceChildren();
      marks[symbol.dataset.symbol](symbol, [0, 1]);
    });
    point();
  }

  function point() {  // the frame around the cell that is asked about
    const board = shown.map.board;
    for (const id of ["cursor", "cursor-line"]) {
      const frame = element(id);
      if (shown.cell === null || !frame) continue;
      frame.setAttribute("transform", `translate(${shown.cell % board.columns} ${Math.floor(shown.cell / board.columns)})`);
      frame.setAttribute("visibility", "visible");
    }
  }

  function describe() {  // what can be asked where there is no map
    const { observations: schema, features, masked } = shown.map, label = element("observation-label");
    label.textContent = schema.type === "integer" ? `Observation: a whole number from 0 to ${schema.maximum}`
      : `Observation: ${schema.minItems} number${schema.minItems > 1 ? "s" : ""}, separated by commas`
        + (features ? ` (${features.join(", ")})` : "");
    element("mask-part").hidden = !masked;
    element("mask-label").textContent = `Which actions exist there, 1 or 0 for each (${shown.map.actions.join(", ")})`;
    element("observation").inputMode = schema.type === "integer" ? "numeric" : "text";
    if (shown.observation === null) {
      element("where").textContent = "";
      element("hint").textContent = "Its answer appears here.";
    }
  }

  // ----------------------------------------------------------------------------------------------------- the answer

  function choose(cell, action) {
    const board = shown.map.board;
    Object.assign(shown, { cell, observation: board.cells[cell], action });
    point();
    const kinds = ["hazard", "goal", "start"].filter(kind => shown.has[kind].has(cell));
    element("where").textContent = `Row ${Math.floor(cell / board.columns)}, column ${cell % board.columns}`
      + (kinds.length ? ` (${kinds.join(", ")})` : "");
    if (shown.has.terminal.has(cell)) {
      shown.observation = null;
      forget();
      element("numbers").hidden = true;
      element("hint").textContent = "An episode ends here: there is nothing to decide.";
      remember();
    } else explain();
  }

  function forget() {  // an answer that is still to come is not wanted any more
    shown.answer++;
    element("answer").classList.remove("waiting");
  }

  async function explain() {
    const number = ++shown.answer;
    element("answer").classList.add("waiting");
    try {
      const asked = { observation: shown.observation };
      if (shown.mask) asked.mask = shown.mask;
      if (shown.action !== null && shown.action < shown.map.actions.length) asked.action = shown.action;
      const answer = await ask("/v1/explain", asked);
      if (number !== shown.answer) return;  // asked again meanwhile
      trouble("");
      remember();
      if (answer.model === shown.map.model) return tell(answer);
      element("numbers").hidden = true;
      element("hint").textContent = "Another model was put into service just now: ask again.";
      look();  // asks again itself, with the new map
    } catch (error) {
      if (number !== shown.answer) return;
      element("numbers").hidden = true;
      if (error.status === 422) element("hint").textContent = error.message;
      else refused(error);
    } finally {
      if (number === shown.answer) element("answer").classList.remove("waiting");
    }
  }

  const rounded = x => Math.abs(x) >= 1000 ? x.toFixed(0) : x.toFixed(2).replace("-", "−");
  const share = p => p > 0 && p < 0.001 ? "< 0.001" : p.toFixed(3);
  const percent = p => p > 0 && p < 0.0001 ? "< 0.01" : (100 * p).toFixed(2);
  const VERDICTS = {
    "chosen": "This is what the policy does.",
    "as good": "As good as what the policy does.",
    "worse": "Worse than what the policy does.",
    "unsafe": "Unsafe.",
    "unsupported": "Not supported by the data.",
    "terminal": "An episode ends here.",
  };

  function tell(answer) {
    const { actions, board } = shown.map, values = answer.q || answer.probabilities;
    const possible = [...actions.keys()].filter(a => answer.possible[a]);  // the others have no row
    const low = Math.min(0, ...values), high = Math.max(0, ...values), reach = high - low || 1;
    if (!board) element("where").textContent = `Observation ${[shown.observation].flat().join(", ")}`.replaceAll("-", "−");
    element("hint").textContent = `The policy chooses ${answer.chosen.name}.`;
    element("bar-name").textContent = answer.q ? "Q-value" : "probability";
    const focused = element("actions").contains(document.activeElement);
    element("actions").replaceChildren(...possible.map(a => {
      const row = document.createElement("tr"), head = document.createElement("th"), label = document.createElement("label");
      const name = actions[a], radio = document.createElement("input");
      Object.assign(radio, { type: "radio", name: "action", checked: a === answer.action.index });
      row.classList.toggle("chosen", a === answer.chosen.index);
      row.classList.toggle("explained", a === answer.action.index);
      row.classList.toggle("never", answer.support.counts[a] === 0);
      radio.addEventListener("change", () => {
        shown.action = a;
        explain();
      });
      head.scope = "row";
      label.append(radio);
      if (board) arrow(make("svg", { viewBox: "0 0 1 1", "aria-hidden": "true" }, label), board.moves[a]);
      label.append(name);
      head.append(label);
      const bar = document.createElement("td");
      const svg = make("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, bar);
      const zero = -100 * low / reach, end = 100 * (values[a] - low) / reach;
      bar.className = "bar";
      make("rect", { x: Math.min(zero, end), y: 1, width: Math.abs(end - zero), height: 8 }, svg);
      make("line", { x1: zero, x2: zero, y1: 0, y2: 10 }, svg);
      const cell = text => Object.assign(document.createElement("td"), { textContent: text });
      const times = answer.support.counts[a] === 0 ? "never" : answer.support.counts[a].toLocaleString("en") + "×";
      row.append(head, bar, cell(answer.q ? rounded(values[a]) : share(values[a])), cell(times), cell(share(answer.probabilities[a])),
                 cell(answer.hazard ? percent(answer.hazard.by_action[a]) : "–"));
      return row;
    }));
    if (focused) element("actions").querySelector("input:checked").focus();
    const other = answer.action.index !== answer.chosen.index, verdict = element("verdict");
    element("why").textContent = other ? `Why not ${answer.action.name}?` : `Why ${answer.action.name}?`;
    verdict.textContent = VERDICTS[answer.verdict] || answer.verdict;
    verdict.hidden = answer.verdict === "chosen";
    verdict.className = ["unsafe", "unsupported"].includes(answer.verdict) ? "bad" : "";
    element("text").textContent = answer.text;
    element("numbers").classList.toggle("no-hazard", !answer.hazard);
    element("steps").textContent = answer.steps;
    element("numbers").hidden = false;
  }

  // ------------------------------------------------------------------------------------------------ links and controls

  function remember() {  // #cell=31&action=1, #observation=0.5,-1&action=1
    const parts = shown.map.board ? { cell: shown.cell } : { observation: [shown.observation].flat().join(",") };
    if (shown.mask) parts.mask = shown.mask.join(",");
    if (shown.action !== null) parts.action = shown.action;
    const hash = "#" + Object.entries(parts).map(([name, value]) => `${name}=${value}`).join("&");
    history.replaceState(null, "", hash);
    element("link").href = hash;
  }

  function follow() {
    if (!shown.map) return;
    const asked = new URLSearchParams(location.hash.slice(1)), board = shown.map.board;
    const action = /^\d+$/.test(asked.get("action") || "") ? Number(asked.get("action")) : null;
    if (board) {
      const cell = Number(asked.get("cell"));
      choose(asked.has("cell") && cell in board.cells ? cell : board.start[0] || 0, action);
    } else if (asked.has("observation")) {
      element("observation").value = asked.get("observation");
      element("mask").value = asked.get("mask") || "";
      read(action);
    }
  }

  function read(action) {  // the observation that was typed
    const numbers = element("observation").value.split(",").map(Number);
    const mask = shown.map.masked ? element("mask").value.split(",").map(Number) : null;
    Object.assign(shown, { observation: shown.map.observations.type === "integer" ? numbers[0] : numbers, mask, action });
    explain();
  }

  const select = cell => cell !== null && choose(cell, null);
  element("map").addEventListener("click", event => select(cellUnder(event, element("map"), shown.map.board)));
  element("map").addEventListener("keydown", event => select(cellBeside(event, shown.cell, shown.map.board)));
  element("observation-form").addEventListener("submit", event => {
    event.preventDefault();
    read(null);
  });
  element("token-form").addEventListener("submit", event => {
    event.preventDefault();
    sessionStorage.setItem("token", element("token").value.trim());
    element("token").value = "";
    look();
  });
  window.addEventListener("hashchange", follow);
  setInterval(() => document.hidden || !element("token-form").hidden || look(), LOOK);
  look();
})();
