// --- what changes while runs are made ------------------------------------------------------------
// The page asks whoever served it, nobody else, and shows what comes back in place of what stood.

const SOON = 2000; // milliseconds
const LATER = 15000; // where nobody looks

function parsed(text) {
  return new DOMParser().parseFromString(text, "text/html"); // in which no script runs
}

function sayState(text) {
  const state = document.querySelector("[data-state]");
  if (state && state.textContent !== text) state.textContent = text;
}

// What the reader has begun is not taken away.
function untouched(board) {
  return !board.querySelector("[aria-sort], input:checked, details[open]") &&
    ![...board.querySelectorAll("input[type=search]")].some((field) => field.value) &&
    !board.contains(document.activeElement);
}

async function renewBoard(said) {
  const board = document.getElementById("board");
  if (!untouched(board)) {
    if (!document.querySelector(".newer")) {
      board.prepend(make("p", { class: "newer", role: "status" }, "Something has finished since. ", make("a", { href: "" }, "Show it")));
    }
    return;
  }
  const page = parsed(await (await fetch("/")).text());
  const fresh = document.importNode(page.getElementById("board"), true);
  board.replaceWith(fresh);
  enliven(fresh);
  document.body.dataset.board = page.body.dataset.board ?? said.board;
}

function renewCards(place, html) {
  const wanted = [...parsed(html).querySelectorAll(".making")];
  const old = [...place.querySelectorAll(".making")];
  wanted.forEach((card, i) => {
    if (!old[i]) place.append(document.importNode(card, true));
    else if (old[i].outerHTML !== card.outerHTML && !old[i].contains(document.activeElement)) {
      old[i].replaceWith(document.importNode(card, true));
    }
  });
  old.slice(wanted.length).forEach((card) => card.remove());
  return wanted.length;
}

async function lookAgain() {
  const { board, live, one } = document.body.dataset;
  try {
    const answer = await fetch(one === undefined ? "/live" : `/live?path=${encodeURIComponent(one)}`);
    if (!answer.ok) throw new Error(answer.statusText);
    const said = await answer.json();
    if (one !== undefined) {
      if (!said.cards.trim()) { location.reload(); return; } // it is finished, or gone
      renewCards(document.getElementById("one"), said.cards);
      sayState("");
    } else {
      if (said.live !== live) {
        const section = document.getElementById("under-way");
        section.hidden = !renewCards(section.querySelector(".makings"), said.cards);
        document.body.dataset.live = said.live;
      }
      if (said.board !== board) await renewBoard(said);
      sayState(said.underWay ? `live, ${said.underWay} under way` : "live");
    }
  } catch {
    sayState("The viewer does not answer: this is what was last known.");
  }
  setTimeout(lookAgain, document.hidden ? LATER : SOON);
}

for (const form of document.querySelectorAll("form[action='/compare']")) {
  form.addEventListener("submit", (event) => {
    if (form.querySelectorAll("input:checked").length < 2) {
      event.preventDefault();
      sayState("Choose two runs or more to compare.");
    }
  });
}
if (document.body.dataset.board !== undefined) setTimeout(lookAgain, SOON);
