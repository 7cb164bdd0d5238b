/*
 * Keeps the pages of django-resilience fresh. Without it they are plain pages with a Refresh link.
 *
 * A fragment is fetched every few seconds; regions that differ are replaced, nothing else is touched: no scroll
 * position, no focus, no selection. While somebody works in the table it waits, and says so.
 */
"use strict";

(() => {
  const root = document.querySelector(".rs");
  if (!root) {
    return;
  }
  const storageKey = "resilience.interval";
  const longestWait = 60;
  const one = (selector, from = root) => from.querySelector(selector);
  const all = (selector, from = root) => Array.from(from.querySelectorAll(selector));

  /* Times: "3 min ago" and "in 12 s" go on between two fetches. */

  const relative = new Intl.RelativeTimeFormat(document.documentElement.lang || undefined, { style: "short" });
  const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];

  function distance(seconds) {
    const size = Math.abs(seconds);
    const [unit, length] = units.find(([, least]) => size >= least) || units[3];
    return relative.format(Math.trunc(seconds / length), unit);
  }

  function tick() {
    const now = Date.now();
    for (const time of all("time[data-ago], time[data-until]")) {
      const seconds = Math.round((Date.parse(time.dateTime) - now) / 1000);
      const text = time.hasAttribute("data-until") && seconds <= 0 ? root.dataset.rsNow : distance(seconds || -0);
      if (time.textContent !== text) {
        time.textContent = text;
      }
    }
  }

  /* Selecting rows. */

  function rowBoxes() {
    return all('td.rs-check input[type="checkbox"]');
  }

  function showSelected() {
    const boxes = rowBoxes();
    const count = boxes.filter((box) => box.checked).length;
    const place = one("[data-rs-selected]");
    if (place) {
      place.textContent = count ? place.dataset.rsSelected.replace("%s", count) : "";
    }
    const master = one("[data-rs-all]");
    if (master) {
      master.hidden = false;
      master.checked = count > 0 && count === boxes.length;
      master.indeterminate = count > 0 && count < boxes.length;
    }
  }

  root.addEventListener("change", (event) => {
    if (event.target.matches("[data-rs-all]")) {
      rowBoxes().forEach((box) => { box.checked = event.target.checked; });
    }
    showSelected();
  });

  /* A form is sent once, however often its button is pressed. */

  root.addEventListener("submit", (event) => {
    const form = event.target;
    if (!form.matches("[data-rs-once]")) {
      return;
    }
    if (form.dataset.rsSent) {
      event.preventDefault();
      return;
    }
    form.dataset.rsSent = "yes";
    window.addEventListener("pageshow", () => { delete form.dataset.rsSent; }, { once: true });
  });

  /* Keys: "/" goes to the search field. */

  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, select, textarea, [contenteditable]");
    const search = one("[data-rs-search]");
    if (event.key === "/" && search && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      search.focus();
    }
  });

  /* Announcing what changed, and only that. */

  function statesOf(from) {
    return new Map(all("[data-rs-state]", from).map((row) => [
      row.dataset.rsKey || one("a", row).getAttribute("href"),
      { name: one("[data-rs-name]", row).textContent, state: row.dataset.rsState },
    ]));
  }

  function announce(before, after) {
    const changed = [];
    for (const [key, { name, state }] of after) {
      const old = before.get(key);
      if (old && old.state !== state) {
        changed.push(root.dataset.rsChanged.replace("%(name)s", () => name).replace("%(state)s", () => state));
      }
    }
    if (changed.length) {
      const text = changed.length > 5 ? root.dataset.rsMany.replace("%s", changed.length) : changed.join(". ");
      one("[data-rs-announcer]").textContent = text;
    }
  }

  /* Fetching. */

  const address = root.dataset.rsFragment;
  const status = one("[data-rs-status]");
  let etag = null;
  let failures = 0;
  let timer = null;
  let signedOut = false;

  function say(text, kind) {
    if (status.textContent !== text) {
      status.textContent = text;
    }
    status.dataset.rsKind = kind;
  }

  /* From pressing to releasing, the row under the pointer must stay the same row. */
  let pressed = false;
  root.addEventListener("pointerdown", (event) => { pressed = Boolean(event.target.closest("[data-rs-region]")); });
  for (const end of ["pointerup", "pointercancel"]) {
    window.addEventListener(end, () => { window.setTimeout(() => { pressed = false; }); });
  }

  function isMarkingText() {
    const marked = document.getSelection();
    return !marked.isCollapsed && all("[data-rs-region]").some((region) => marked.containsNode(region, true));
  }

  function isHeld() {
    const inside = document.activeElement && document.activeElement.closest("[data-rs-region]");
    // A link or button that was pressed keeps the focus; only fields and what the keyboard reached count.
    const working = inside && document.activeElement.matches(":focus-visible, input, select, textarea");
    return pressed || isMarkingText() || Boolean(working) || rowBoxes().some((box) => box.checked);
  }

  function replaceRegions(html) {
    const parsed = new DOMParser().parseFromString(html, "text/html");
    const before = statesOf(root);
    for (const region of all("[data-rs-region]", parsed)) {
      const here = one(`[data-rs-region="${CSS.escape(region.dataset.rsRegion)}"]`);
      if (here && here.innerHTML !== region.innerHTML) {
        const open = all("details[open]", here).map((details) => details.id).filter(Boolean);
        here.replaceChildren(...region.childNodes);
        open.forEach((id) => { const again = document.getElementById(id); if (again) { again.open = true; } });
      }
    }
    announce(before, statesOf(root));
    showSelected();
    tick();
  }

  async function load() {
    const headers = etag ? { "If-None-Match": etag } : {};
    const response = await fetch(address, { headers, credentials: "same-origin", cache: "no-store" });
    if (response.status === 304) {
      return;
    }
    if (response.redirected || response.status === 403 || !response.headers.get("X-Resilience-Fragment")) {
      if (response.status >= 500) {
        throw new Error(String(response.status));
      }
      signedOut = true;
      return;
    }
    if (!response.ok) {
      throw new Error(String(response.status));
    }
    const html = await response.text();
    if (!isHeld()) {
      etag = response.headers.get("ETag");
      replaceRegions(html);
    }
  }

  function interval() {
    return Number(one("[data-rs-interval]").value);
  }

  function plan(seconds) {
    window.clearTimeout(timer);
    timer = seconds > 0 ? window.setTimeout(poll, seconds * 1000) : null;
  }

  async function poll() {
    const every = interval();
    if (!every || signedOut) {
      say(signedOut ? root.dataset.rsSignedout : root.dataset.rsOff, signedOut ? "lost" : "off");
      return;
    }
    if (document.hidden) {
      return;
    }
    if (isHeld()) {
      say(root.dataset.rsHeld, "held");
      plan(1);
      return;
    }
    try {
      await load();
      failures = 0;
    } catch {
      failures += 1;
      const wait = Math.min(longestWait, every * 2 ** failures);
      say(root.dataset.rsLost.replace("%s", wait), "lost");
      plan(wait);
      return;
    }
    say(signedOut ? root.dataset.rsSignedout : root.dataset.rsLive, signedOut ? "lost" : "live");
    plan(every);
  }

  function startPolling() {
    const menu = one("[data-rs-interval]");
    one("[data-rs-control]").hidden = false;
    try {
      const chosen = window.localStorage.getItem(storageKey);
      if (Array.from(menu.options).some((option) => option.value === chosen)) {
        menu.value = chosen;
      }
    } catch { /* storage may be forbidden; the default will do */ }
    menu.addEventListener("change", () => {
      try {
        window.localStorage.setItem(storageKey, menu.value);
      } catch { /* as above */ }
      failures = 0;
      poll();
    });
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) {
        poll();
      }
    });
    say(interval() ? root.dataset.rsLive : root.dataset.rsOff, interval() ? "live" : "off");
    plan(interval());
  }

  showSelected();
  tick();
  window.setInterval(tick, 1000);
  if (address) {
    startPolling();
  }
})();
