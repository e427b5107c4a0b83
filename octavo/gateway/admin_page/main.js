// The page's frame: the key, the parts, and when they are asked for again.

import { ask, get, session } from "./api.js";
import { Audit } from "./audit.js";
import { Budgets } from "./budgets.js";
import { Escalations } from "./escalations.js";
import { byId, element } from "./format.js";
import { Keys } from "./keys.js";
import { Limits } from "./limits.js";
import { Playground } from "./playground.js";
import { Routes } from "./routes.js";
import { Spend } from "./spend.js";
import { errorText, say } from "./ui.js";

const PARTS = [["keys", "Keys", Keys], ["limits", "Limits", Limits], ["budgets", "Budgets", Budgets], ["routes", "Routes", Routes],
  ["escalations", "Escalations", Escalations], ["spend", "Spend", Spend], ["playground", "Playground", Playground], ["audit", "Audit log", Audit]];

let facts = null;
let shown = null;
let timer = 0;
const views = new Map();

function notice(title, text = "", kind = "bad") {
  const place = byId("notice");
  place.hidden = !title;
  place.className = `notice ${kind}`;
  place.querySelector("strong").textContent = title;
  place.querySelector("span").textContent = text;
}

function pill(kind, text) {
  byId("state").className = `pill ${kind}`;
  if (byId("state").textContent !== text) byId("state").textContent = text;
}

function lock(refusal) {
  clearTimeout(timer);
  session.forget();
  facts = shown = null;
  views.clear();
  for (const dialog of document.querySelectorAll("dialog")) dialog.remove();
  byId("main").replaceChildren();
  for (const id of ["main", "nav", "forget", "reload"]) byId(id).hidden = true;
  byId("login").hidden = false;
  byId("who").textContent = "";
  byId("refusal").textContent = refusal;
  notice("");
  pill("", "locked");
  byId("key").focus();
}

async function unlock() {
  try {
    facts = await get("/overview");
  } catch (error) {
    if (error.status !== 401) byId("refusal").textContent = errorText(error);
    return;
  }
  byId("login").hidden = true;
  byId("who").textContent = `${facts.actor.replace("admin:", "as ")}, version ${facts.version}`;
  for (const id of ["main", "nav", "forget", "reload"]) byId(id).hidden = false;
  go();
}

// Asks for what a part shows, or for more of it, and tells what goes wrong.
async function load(view, work = () => view.load()) {
  clearTimeout(timer);
  try {
    await work();
    pill("good", "connected");
    notice("");
  } catch (error) {
    if (error.status === 401) return;
    if (error.status === undefined) console.error(error); // a mistake of this page
    pill("bad", error.status ? "refused" : "no answer");
    notice(error.status ? "The gateway says no." : "Something is wrong.", `${errorText(error)}`);
  }
  if (view === shown && view.every) timer = setTimeout(again, view.every);
}

function again() { // not while nobody looks, and not under a dialog
  if (!shown) return;
  if (document.hidden || document.querySelector("dialog[open]")) timer = setTimeout(again, shown.every);
  else load(shown);
}

async function go() {
  if (!facts) return;
  const [name, title, Part] = PARTS.find(([id]) => `#${id}` === location.hash) ?? PARTS[0];
  let view = views.get(name);
  if (!view) {
    view = new Part(facts);
    view.reload = (work) => load(view, work);
    views.set(name, view);
  }
  shown = view;
  document.title = `${title} – Octavo gateway`;
  for (const link of byId("nav").querySelectorAll("a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  byId("main").replaceChildren(view.place);
  document.getElementById("title").focus({ preventScroll: true });
  await load(view);
  if (shown === view && document.activeElement === document.body) document.getElementById("title")?.focus({ preventScroll: true });
}

session.onLocked = () => lock("The gateway does not know this admin key.");
byId("nav").append(element("ul", {}, ...PARTS.map(([id, title]) => element("li", {}, element("a", { href: `#${id}` }, title)))));
byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = byId("key").value.trim();
  byId("key").value = "";
  byId("refusal").textContent = "";
  if (!/^[\x21-\x7e]+$/.test(given)) return lock("A key has letters, digits and signs only.");
  session.keep(given);
  unlock();
});
byId("forget").addEventListener("click", () => lock(""));
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  (facts ? byId("main") : byId("key")).focus();
});
byId("reload").addEventListener("click", async () => {
  try {
    const result = await ask("POST", "/reload");
    facts = await get("/overview");
    for (const name of views.keys()) if (name !== "playground") views.delete(name); // what was typed there stays
    await go();
    byId("reload").focus();
    const waits = result.needs_start ?? [];
    notice("The configuration was read anew.", waits.length ? `With the next start takes effect: ${waits.join(", ")}.` : "", "good");
    say("The configuration was read anew.");
  } catch (error) {
    if (error.status !== 401) notice("The configuration stays as it was.", errorText(error));
  }
});
window.addEventListener("hashchange", go);
document.addEventListener("visibilitychange", () => { if (!document.hidden && shown?.every) again(); });
if (session.key) unlock();
else lock("");
