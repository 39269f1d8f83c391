// What a page does besides standing there: sorts and filters tables, shows and hides lines, reads
// values off charts, saves figures as PNG, and looks through the images of a run. Without it all
// figures are still there. It asks nobody for anything, and puts text into the page as text only.
"use strict";

function make(name, attributes = {}, ...content) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null) element.setAttribute(key, value);
  }
  element.append(...content);
  return element;
}

// --- tables --------------------------------------------------------------------------------------

const ROWS_TO_FILTER = 8;

function cellKey(cell) {
  const text = (cell.dataset.value ?? cell.firstChild?.textContent ?? cell.textContent).trim();
  const number = /^[<+]?\s*([−-]?[\d,]*\.?\d+)/.exec(text);
  return { text, number: number ? Number(number[1].replaceAll(",", "").replace("−", "-")) : null };
}

function compareKeys(a, b) {
  if (a.number !== null && b.number !== null) return a.number - b.number;
  if (a.number !== null) return 1; // what has no value comes below everything that has one
  if (b.number !== null) return -1;
  return a.text.localeCompare(b.text, undefined, { numeric: true });
}

function sortable(table) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    if (head.tagName !== "TH" || body.rows.length < 2) return;
    const button = make("button", { type: "button", class: "sort" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // Figures: the largest first. Names: from A on.
      const keys = new Map([...body.rows].map((row) => [row, cellKey(row.cells[column])]));
      const named = [...keys.values()].every((key) => key.number === null) || column === 0;
      const was = head.getAttribute("aria-sort");
      const way = was === null ? (named ? 1 : -1) : was === "ascending" ? -1 : 1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      const order = column === 0
        ? (a, b) => a.text.localeCompare(b.text, undefined, { numeric: true })
        : compareKeys;
      body.append(...[...body.rows].sort((a, b) => way * order(keys.get(a), keys.get(b))));
    });
  });
  if (body.rows.length < ROWS_TO_FILTER) return;
  const told = make("span", { role: "status", class: "soft" });
  const field = make("input", { type: "search", autocomplete: "off" });
  const texts = new Map([...body.rows].map((row) => [row, row.textContent.toLowerCase()]));
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const [row, text] of texts) {
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    told.textContent = words.length ? `${shown} of ${texts.size} rows` : "";
  });
  const bar = make("div", { class: "filter" }, make("label", {}, "Filter ", field), " ", told);
  (table.closest(".scroll") ?? table).before(bar);
}

// --- charts --------------------------------------------------------------------------------------

function chart(figure) {
  const canvas = figure.querySelector(".canvas");
  const plot = canvas.querySelector("svg.plot");
  const hidden = new Set();
  const shapes = (line) => plot.querySelectorAll(`[data-line="${line}"]`);

  const entries = [...figure.querySelectorAll(".legend > li[data-line]")];
  if (entries.length > 1) {
    for (const entry of entries) {
      const line = entry.dataset.line;
      const button = make("button", { type: "button", "aria-pressed": "true" });
      button.append(...entry.childNodes);
      entry.append(button);
      button.addEventListener("click", () => {
        const off = !hidden.has(line);
        if (off) hidden.add(line);
        else hidden.delete(line);
        button.setAttribute("aria-pressed", String(!off));
        for (const shape of shapes(line)) shape.style.display = off ? "none" : "";
      });
      // A band that is hidden among many is shown with its own line.
      const spot = (on) => {
        for (const shape of shapes(line)) {
          if (shape.classList.contains("quiet")) shape.classList.toggle("shown", on);
        }
      };
      for (const event of ["mouseenter", "focus"]) button.addEventListener(event, () => spot(true));
      for (const event of ["mouseleave", "blur"]) button.addEventListener(event, () => spot(false));
    }
  }

  const readout = make("div", { class: "readout", role: "status", hidden: "" });
  const rule = make("div", { class: "rule", hidden: "" });
  canvas.append(rule, readout);
  const stops = () => {
    const found = new Map();
    const add = (x, shape) => {
      if (hidden.has(shape.dataset.line)) return;
      if (!found.has(x)) found.set(x, []);
      found.get(x).push(shape.querySelector("title").textContent);
    };
    for (const dot of plot.querySelectorAll("circle.dot")) add(parseFloat(dot.getAttribute("cx")), dot);
    for (const mark of plot.querySelectorAll(":scope > svg[x]")) add(parseFloat(mark.getAttribute("x")), mark);
    return [...found].sort((a, b) => a[0] - b[0]);
  };
  let place = -1;
  const show = (found, at) => {
    place = at;
    const [x, texts] = found[at];
    rule.hidden = readout.hidden = false;
    const left = plot.getBoundingClientRect().left - canvas.getBoundingClientRect().left;
    const where = left + (plot.getBoundingClientRect().width * x) / 100;
    rule.style.left = `${where}px`;
    readout.replaceChildren(...texts.slice(0, 12).map((text) => make("div", {}, text)));
    if (texts.length > 12) readout.append(make("div", {}, `and ${texts.length - 12} more`));
    const room = canvas.clientWidth - readout.offsetWidth;
    readout.style.left = `${Math.max(0, Math.min(room, where > room - 16 ? where - readout.offsetWidth - 12 : where + 12))}px`;
  };
  const leave = () => { rule.hidden = readout.hidden = true; place = -1; };
  canvas.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const x = (100 * (event.clientX - box.left)) / box.width;
    const found = stops();
    if (!found.length) return;
    let nearest = 0;
    found.forEach(([at], i) => { if (Math.abs(at - x) < Math.abs(found[nearest][0] - x)) nearest = i; });
    show(found, nearest);
  });
  canvas.addEventListener("pointerleave", leave);
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "group");
  canvas.setAttribute("aria-label", `${plot.getAttribute("aria-label")} Arrow keys read the values.`);
  canvas.addEventListener("keydown", (event) => {
    const found = stops();
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") leave();
    if (step === undefined || !found.length) return;
    event.preventDefault();
    show(found, Math.max(0, Math.min(found.length - 1, place + step)));
  });
  canvas.addEventListener("blur", leave);
}

function savedAsPng(list) {
  const svg = list.querySelector('a[download$=".svg"]');
  if (!svg) return;
  const link = make("button", { type: "button" }, "PNG");
  link.addEventListener("click", () => {
    const picture = new Image();
    picture.addEventListener("load", () => {
      const canvas = make("canvas", { width: 2 * picture.width, height: 2 * picture.height });
      canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
      make("a", { href: canvas.toDataURL("image/png"), download: svg.download.replace(/svg$/, "png") }).click();
    });
    picture.src = svg.href;
  });
  svg.after(" ", link);
}

// --- images --------------------------------------------------------------------------------------

const PAGE = 48;
const FATE = ["stands", "broken", "wrong before any attack"];
const SIGN = ["✓", "✕", "○"];

function gallery(section) {
  const held = JSON.parse(section.querySelector("script").textContent);
  const count = held.index.length;
  const loaded = new Map();
  const sheet = (kind, number) => {
    const key = `${kind} ${number}`;
    if (!loaded.has(key)) {
      const picture = new Image();
      picture.src = held[kind][number];
      loaded.set(key, picture.decode().then(() => picture));
    }
    return loaded.get(key);
  };
  const tile = (i) => {
    const within = i % held.perSheet;
    return [Math.floor(i / held.perSheet), within % held.columns, Math.floor(within / held.columns)];
  };
  const name = (label) => (label < 0 ? "no answer" : held.classes[label]);
  const sure = (value) => (value === null ? "" : `, ${(100 * value).toFixed(1)} %`);
  const by = (i) => (held.attack[i] < 0 ? "" : ` by ${held.attacks[held.attack[i]]}`);
  const words = held.aimed ? ["target not reached", "target reached", "its target before any attack"] : FATE;
  const told = (i) => {
    const turned = held.fate[i] === 1 ? ` into ${name(held.after[i])}` : "";
    return `no. ${held.index[i]}, ${name(held.label[i])}, ${words[held.fate[i]]}${by(i)}${turned}`;
  };
  // How sure of the right answer after the attack; below 0, how sure of a wrong one.
  const margin = (i) => (held.afterSure[i] ?? 0) * (held.after[i] === held.label[i] ? 1 : -1);
  const orders = {
    "number": (a, b) => held.index[a] - held.index[b],
    "standing by the least": (a, b) => (held.fate[a] !== 0) - (held.fate[b] !== 0) || margin(a) - margin(b),
    "broken by the most": (a, b) => (held.fate[a] !== 1) - (held.fate[b] !== 1) || margin(a) - margin(b),
    "surest before the attack": (a, b) => (held.beforeSure[b] ?? 0) - (held.beforeSure[a] ?? 0),
    "smallest change": (a, b) => (held.distance[a] ?? Infinity) - (held.distance[b] ?? Infinity),
  };

  const choose = (label, options) => {
    const select = make("select", { "aria-label": label }, ...options.map(([text, value]) => make("option", { value }, text)));
    select.addEventListener("change", () => { first = 0; refresh(); });
    controls.append(make("label", {}, label, " ", select));
    return select;
  };
  const some = (values) => [...new Set(values)].filter((v) => v >= 0).sort((a, b) => a - b);
  const controls = make("div", { class: "controls" });
  const all = [["all", "-2"]];
  const ofClass = choose("Class", all.concat(some(held.label).map((k) => [name(k), k])));
  const intoClass = choose("Answer under attack", all.concat(some(held.after).map((k) => [name(k), k])));
  const ofFate = choose("Fate", all.concat(some(held.fate).map((k) => [words[k], k])));
  const ofAttack = choose("Attack", all.concat(held.attacks.map((text, k) => [text, k])));
  const order = choose("Order", Object.keys(orders).map((key) => [key, key]));

  const status = make("p", { class: "note", role: "status" });
  const tiles = make("div", { class: "tiles", role: "group", "aria-label": "Images" });
  const back = make("button", { type: "button" }, "← before");
  const on = make("button", { type: "button" }, "next →");
  const pager = make("div", { class: "pager" }, back, on);
  back.addEventListener("click", () => { first -= PAGE; refresh(); });
  on.addEventListener("click", () => { first += PAGE; refresh(); });

  const size = { width: held.width, height: held.height };
  const blend = make("canvas", { ...size, role: "img", "aria-label": "No image yet" });
  const shift = make("canvas", { ...size, role: "img", "aria-label": "No perturbation yet" });
  const largest = Math.max(1, Math.floor(0.5 / held.scale));
  const slide = make("input", { type: "range", min: "0", max: "100", value: "100", "aria-label": "From clean to attacked" });
  const zoom = make("input", { type: "range", min: "1", max: String(2 * largest), value: String(largest), "aria-label": "Magnification" });
  const title = make("h4");
  const ends = [make("p"), make("p")]; // what the model answers where the slider begins and ends
  const change = make("p", { class: "soft" });
  const viewer = make("div", { class: "viewer card" },
    make("div", {}, blend, make("label", {}, "clean → attacked ", slide)),
    make("div", {}, shift, make("label", {}, "perturbation × ", make("output", {}, zoom.value), " ", zoom)),
    make("div", { role: "status" }, title, ...ends, change));

  let first = 0;
  let found = [];
  let current = -1;
  let pixels = null; // of the current image: clean and changed values, in [0, 1]

  function refresh() {
    const wanted = (select, values, i) => select.value === "-2" || values[i] === Number(select.value);
    found = [];
    for (let i = 0; i < count; i++) {
      if (wanted(ofClass, held.label, i) && wanted(intoClass, held.after, i) &&
          wanted(ofFate, held.fate, i) && wanted(ofAttack, held.attack, i)) found.push(i);
    }
    found.sort((a, b) => orders[order.value](a, b) || a - b);
    first = Math.max(0, Math.min(first, found.length - 1));
    first -= first % PAGE;
    const shown = found.slice(first, first + PAGE);
    status.textContent = found.length
      ? `${first + 1} – ${first + shown.length} of ${found.length.toLocaleString("en")} images`
      : "No image is like that.";
    back.disabled = first === 0;
    on.disabled = first + PAGE >= found.length;
    tiles.replaceChildren(...shown.map((i) => {
      const canvas = make("canvas", { ...size, "aria-hidden": "true" });
      const button = make("button", { type: "button", class: `tile fate-${held.fate[i]}`, "aria-label": told(i), title: told(i) },
        canvas, make("span", { "aria-hidden": "true" }, `${SIGN[held.fate[i]]} ${name(held.label[i])}`));
      button.dataset.image = i;
      button.addEventListener("click", () => view(i));
      const [number, column, row] = tile(i);
      sheet("clean", number).then((picture) => canvas.getContext("2d").drawImage(
        picture, column * held.width, row * held.height, held.width, held.height, 0, 0, held.width, held.height));
      return button;
    }));
    if (shown.length) view(shown[0]);
  }

  tiles.addEventListener("keydown", (event) => {
    const buttons = [...tiles.children];
    const across = buttons.filter((b) => b.offsetTop === buttons[0].offsetTop).length;
    const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
    const at = buttons.indexOf(document.activeElement);
    if (step === undefined || at < 0) return;
    event.preventDefault();
    const next = buttons[at + step];
    if (next) { next.focus(); view(Number(next.dataset.image)); }
  });

  async function view(i) {
    current = i;
    for (const button of tiles.children) {
      const own = Number(button.dataset.image) === i;
      if (own) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    const [number, column, row] = tile(i);
    const [clean, moved] = await Promise.all([sheet("clean", number), sheet("change", number)]);
    if (current !== i) return; // another one was asked for meanwhile
    const { width: w, height: h, channels } = held;
    const values = (picture, across) => {
      const canvas = make("canvas", { width: across, height: h });
      const context = canvas.getContext("2d");
      context.drawImage(picture, column * across, row * h, across, h, 0, 0, across, h);
      return context.getImageData(0, 0, across, h).data;
    };
    const before = values(clean, w);
    const grey = values(moved, w * channels); // the channels lie beside each other
    pixels = { clean: new Float32Array(3 * w * h), delta: new Float32Array(3 * w * h) };
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) for (let c = 0; c < 3; c++) {
      const at = 3 * (y * w + x) + c;
      const own = Math.min(c, channels - 1) * w + x;
      // Grey is rounded half up, so that no change lies at 127.5.
      const level = Math.round(((grey[4 * (y * w * channels + own)] - 127.5) / 127.5) * held.levels);
      pixels.clean[at] = before[4 * (y * w + x) + c] / 255;
      pixels.delta[at] = (held.scale * level) / held.levels;
    }
    title.textContent = `${name(held.label[i])}, no. ${held.index[i]}`;
    const distance = held.distance[i];
    const far = distance === null ? "" : held.steps ? `${Number((255 * distance).toPrecision(4))}/255` : String(Number(distance.toPrecision(4)));
    change.textContent = `${words[held.fate[i]]}${by(i)}${far ? `; ${held.norm} ${far}` : ""}`;
    draw();
  }

  function draw() {
    const i = current;
    if (!pixels) return;
    const share = slide.value / 100;
    const times = Number(zoom.value);
    viewer.querySelector("output").textContent = zoom.value;
    const paint = (canvas, value) => {
      const context = canvas.getContext("2d");
      const image = context.createImageData(held.width, held.height);
      for (let at = 0; at < pixels.clean.length; at++) {
        const pixel = Math.floor(at / 3);
        image.data[4 * pixel + (at % 3)] = 255 * Math.max(0, Math.min(1, value(at)));
        image.data[4 * pixel + 3] = 255;
      }
      context.putImageData(image, 0, 0);
    };
    paint(blend, (at) => pixels.clean[at] + share * pixels.delta[at]);
    paint(shift, (at) => 0.5 + times * share * pixels.delta[at]);
    ends[0].textContent = `clean: ${name(held.before[i])}${sure(held.beforeSure[i])}`;
    ends[1].textContent = `attacked: ${name(held.after[i])}${sure(held.afterSure[i])}`;
    ends.forEach((end, at) => end.classList.toggle("here", share === at));
    blend.setAttribute("aria-label", `Image ${held.index[i]}, ${slide.value} % of the way from clean to attacked`);
    shift.setAttribute("aria-label", `Its perturbation, magnified ${zoom.value} times`);
  }
  slide.addEventListener("input", draw);
  zoom.addEventListener("input", draw);

  const browser = make("div", { class: "browser" }, controls, status, viewer, tiles, pager);
  section.querySelector("script").replaceWith(browser);
  for (const still of section.querySelectorAll(".still")) still.hidden = true;
  // Images are decoded when the reader comes near, not before.
  new IntersectionObserver((seen, observer) => {
    if (seen.some((entry) => entry.isIntersecting)) { observer.disconnect(); refresh(); }
  }, { rootMargin: "600px" }).observe(browser);
}

function enliven(root) {
  for (const table of root.querySelectorAll("table.sortable")) sortable(table);
  for (const figure of root.querySelectorAll(".chart")) chart(figure);
  for (const list of root.querySelectorAll(".downloads")) savedAsPng(list);
  for (const section of root.querySelectorAll("section[data-gallery]")) gallery(section);
}

enliven(document);
