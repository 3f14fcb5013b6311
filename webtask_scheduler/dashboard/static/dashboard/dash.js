// What the pages do beyond plain HTML: countdowns, news without a reload, keys, a preview. All works without it too.
(() => {
  'use strict';
  const root = document.documentElement;
  const say = root.dataset;
  root.classList.add('scripted');
  // The server's clock decides; the browser's may be wrong. How late this runs is not its fault.
  const arrived = performance.getEntriesByType('navigation')[0]?.responseStart;
  const skew = Date.parse(say.now) - (arrived ? performance.timeOrigin + arrived : Date.now());
  const now = () => Date.now() + skew;
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];

  // Times
  const unit = (name, digits = 0) => {
    const options = { style: 'unit', unit: name, unitDisplay: 'narrow', minimumFractionDigits: digits, maximumFractionDigits: digits };
    const format = new Intl.NumberFormat(root.lang, options);
    return (number) => format.format(number);
  };
  const [day, hour, minute, second, tenth] = [unit('day'), unit('hour'), unit('minute'), unit('second'), unit('second', 1)];
  const length = (ms, tenths) => {
    const s = ms / 1000;
    if (tenths && s < 10) return tenth(Math.floor(s * 10) / 10);
    const whole = Math.floor(s);
    if (whole < 60) return second(whole);
    if (whole < 3600) return `${minute(Math.floor(whole / 60))} ${second(whole % 60)}`;
    if (whole < 86400) return `${hour(Math.floor(whole / 3600))} ${minute(Math.floor((whole % 3600) / 60))}`;
    return `${day(Math.floor(whole / 86400))} ${hour(Math.floor((whole % 86400) / 3600))}`;
  };
  const local = new Intl.DateTimeFormat(root.lang, { dateStyle: 'medium', timeStyle: 'long' });
  // Tenths of many countdowns tell nobody anything, and drawing them ten times a second keeps a processor busy.
  const TENTHS_MOST = 3;
  let telling;
  const tell = () => {
    clearTimeout(telling);
    if (document.hidden) return;
    const at = now();
    let reached = false;
    const times = all('time[data-kind]');
    const near = times.filter((time) => time.dataset.kind === 'due' && Date.parse(time.dateTime) > at && Date.parse(time.dateTime) < at + 10500).length;
    const tenths = near <= TENTHS_MOST;
    telling = setTimeout(tell, near && tenths ? 100 : 1000 - (at % 1000));
    for (const time of times) {
      const kind = time.dataset.kind;
      const left = Date.parse(time.dateTime) - at;
      if (!time.dataset.told) {
        time.dataset.told = '1';
        time.title = `${time.title || time.textContent} · ${local.format(new Date(time.dateTime))}`;
      }
      if (kind === 'moment') {
        const by = say.clock ?? 'utc';
        if (time.dataset.by === by) continue;
        time.dataset.plain ??= time.textContent;
        time.textContent = say.clock ? local.format(new Date(time.dateTime)) : time.dataset.plain;
        time.dataset.by = by;
        continue;
      }
      let text;
      if (kind === 'due' && left <= 0) {
        text = say.due;
        if (time.dataset.was === 'before') reached = true;
        time.dataset.was = 'after';
      } else if (left > 0) {
        time.dataset.was = 'before';
        text = say.in.replace('%s', length(left, tenths));
      } else text = say.ago.replace('%s', length(-left, false));
      if (time.textContent !== text) time.textContent = text;
    }
    // Where many are due all the time, the pace of the page is quick enough.
    if (reached && tenths) setTimeout(() => regions.forEach(ask), 150);
  };

  const off = document.getElementById('skew');
  if (off && Math.abs(skew) > 2000) {
    off.lastElementChild.textContent = off.lastElementChild.textContent.replace('%s', length(Math.abs(skew), true));
    off.hidden = false;
  }

  // A row has a link to its timer's page, where all may be done; here it becomes a menu of the row's kind.
  const ANY_ID = '{id}';
  const menuOf = (place) => {
    for (const link of all('a.c-menu', place)) {
      if (!document.getElementById(`menu-${link.dataset.menu}`)) continue;
      const [menu, opens, sheet] = ['details', 'summary', 'div'].map((name) => document.createElement(name));
      opens.textContent = link.textContent;
      opens.setAttribute('aria-labelledby', link.getAttribute('aria-labelledby'));
      sheet.className = 'sheet';
      menu.className = 'menu c-menu';
      // One is open at a time.
      menu.setAttribute('name', 'row');
      menu.dataset.menu = link.dataset.menu;
      menu.append(opens, sheet);
      link.replaceWith(menu);
    }
  };
  const fill = (menu) => {
    const kind = document.getElementById(`menu-${menu.dataset.menu}`);
    menu.lastElementChild.innerHTML = kind.innerHTML.replaceAll(ANY_ID, menu.closest('.row').dataset.key);
  };

  // News: parts of a page with a key are replaced where they stand; nothing else moves.
  const light = document.getElementById('live');
  const lit = (is, why = is) => {
    if (!light) return;
    light.hidden = false;
    light.dataset.is = is;
    light.textContent = light.dataset[why];
  };
  // Why a part of the page must not change now; empty if it may.
  const busy = (region) => {
    const at = document.activeElement;
    const selected = document.getSelection();
    if (region.querySelector('.c-tick :checked')) return 'ticked';
    if (at && region.contains(at) && at.matches('input:not([type="checkbox"]), select, textarea')) return 'typing';
    if (document.querySelector('dialog[open], details.ask[open], details.menu[open]')) return 'menu';
    return selected && selected.type === 'Range' && region.contains(selected.anchorNode) ? 'wait' : '';
  };
  // Answers that failed in a row; one or two are no news.
  let failed = 0;
  const heard = (count) => {
    failed = count;
    const lost = document.getElementById('lost');
    if (lost) lost.hidden = failed < 3;
  };
  const known = new WeakMap();
  // A part inside another comes and goes with that.
  const partsOf = (place) => all('[data-key]', place).filter((part) => !part.parentElement?.closest('[data-key]'));
  const note = (region) => partsOf(region).forEach((part) => known.set(part, part.outerHTML));
  const patch = (region, html) => {
    const fresh = document.createElement('template');
    fresh.innerHTML = html;
    const parts = new Map(partsOf(region).map((part) => [part.dataset.key, part]));
    let last = null;
    for (const part of partsOf(fresh.content)) {
      const old = parts.get(part.dataset.key);
      const html = part.outerHTML;
      if (!old) {
        // A part that was not there yet, such as a first drawing; rows of a list are asked for by name.
        if (last) last.after(part);
        known.set(part, html);
      } else if (known.get(old) !== html) {
        const opened = all('details', old).map((one) => one.open);
        const at = document.activeElement;
        const place = old.contains(at) ? all('a, button, summary, input', old).indexOf(at) : -1;
        menuOf(part);
        old.replaceWith(part);
        known.set(part, html);
        all('details', part).forEach((one, number) => { if (number < opened.length) one.open = opened[number]; });
        if (place >= 0) all('a, button, summary, input', part)[place]?.focus();
        if (part.matches('.row')) {
          part.classList.add('fresh');
          setTimeout(() => part.classList.remove('fresh'), 1000);
        }
        last = part;
        continue;
      }
      last = old ?? part;
    }
    tell();
  };
  const regions = all('[data-live]');
  let paused = say.rate === '0';
  const pace = (region) => 1000 * say.rate || Number(region.dataset.every) || 5000;
  const ask = async (region) => {
    if (region.dataset.asking || paused || document.hidden || region.dataset.every === '0') return;
    const why = busy(region);
    if (why) return lit('wait', why);
    region.dataset.asking = '1';
    try {
      const url = new URL(region.dataset.live, location.href);
      if (region.dataset.ids !== undefined) url.searchParams.set('ids', partsOf(region).map((part) => part.dataset.key).join(','));
      if (region.dataset.seen) url.searchParams.set('seen', region.dataset.seen);
      const answer = await fetch(url, { headers: { Accept: 'text/html' } });
      if (answer.status === 401) return location.reload();
      if (!answer.ok) throw new Error(String(answer.status));
      region.dataset.seen = answer.headers.get('X-Seen') ?? '';
      if (answer.status === 200) {
        const html = await answer.text();
        // What the user began meanwhile counts more.
        if (busy(region)) region.dataset.seen = '';
        else patch(region, html);
      }
      const said = region.querySelector('[data-every]');
      if (said) region.dataset.every = said.dataset.every;
      const fresh = Number(answer.headers.get('X-New'));
      const pill = document.getElementById('new-rows');
      if (pill && region.dataset.ids !== undefined) {
        pill.hidden = !fresh;
        pill.querySelector('[data-count]').textContent = new Intl.NumberFormat(root.lang).format(fresh) + (fresh >= 30 ? '+' : '');
      }
      lit('on');
      heard(0);
    } catch {
      lit('off');
      heard(failed + 1);
    } finally {
      delete region.dataset.asking;
    }
  };
  for (const region of regions) {
    note(region);
    menuOf(region);
    const again = async () => {
      await ask(region);
      if (region.dataset.every !== '0') setTimeout(again, pace(region));
    };
    setTimeout(again, pace(region));
    if (paused) lit('wait', 'stopped');
  }
  document.addEventListener('visibilitychange', () => { if (!document.hidden) { tell(); regions.forEach(ask); } });
  tell();

  // The form of a new timer
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  for (const field of all('[data-zone]')) if (!field.value && zone) field.value = zone;
  for (const form of all('[data-preview]')) {
    const target = document.getElementById('preview');
    let timeout, number = 0;
    const look = async () => {
      const mine = ++number;
      target.setAttribute('aria-busy', 'true');
      try {
        const answer = await fetch(form.dataset.preview, { method: 'POST', body: new FormData(form) });
        if (mine !== number || !answer.ok || answer.redirected) return;
        const open = all('details', target).findIndex((one) => one.open);
        target.innerHTML = await answer.text();
        if (open > 0) all('details', target).forEach((one, at) => { one.open = at === open; });
        tell();
      } catch { /* The form works all the same. */ } finally {
        target.removeAttribute('aria-busy');
      }
    };
    form.addEventListener('input', () => { clearTimeout(timeout); timeout = setTimeout(look, 300); });
    look();
    const wrong = form.querySelector('.wrong input, .wrong textarea, .wrong select');
    if (wrong) wrong.focus();
  }
  // A field whose options depend on what is typed
  for (const field of all('[data-options]')) {
    let timeout;
    field.addEventListener('input', () => {
      clearTimeout(timeout);
      timeout = setTimeout(async () => {
        const url = new URL(field.dataset.options, location.href);
        url.searchParams.set('host', field.value);
        const answer = await fetch(url).catch(() => null);
        if (answer?.ok && !answer.redirected) field.list.replaceChildren(...(await answer.json()).hosts.map((host) => new Option(host, host)));
      }, 200);
    });
  }
  // Loading the answer to a form anew must not send the form again.
  if (document.querySelector('[data-posted]')) history.replaceState(null, '', location.href);
  // A second click must not make a second timer.
  document.addEventListener('submit', (event) => {
    if (event.target.method !== 'post') return;
    if (event.target.dataset.sent) return event.preventDefault();
    event.target.dataset.sent = '1';
  });
  addEventListener('pageshow', () => all('form[data-sent]').forEach((form) => delete form.dataset.sent));

  // Choices
  for (const choice of all('[data-send]')) choice.addEventListener('change', () => choice.form.requestSubmit());
  // What this browser keeps, and the page says of itself as data-theme, data-clock or data-rate.
  for (const choice of all('[data-keep]')) {
    choice.addEventListener('change', () => {
      const name = choice.dataset.keep;
      document.cookie = `${name}=${choice.value}; path=/; max-age=31536000; samesite=lax`;
      if (choice.value) say[name] = choice.value; else delete say[name];
      if (name === 'theme') document.querySelector('meta[name="color-scheme"]').content = choice.value || 'light dark';
      if (name === 'clock') tell();
      if (name !== 'rate') return;
      paused = choice.value === '0';
      if (paused && regions.length) lit('wait', 'stopped'); else regions.forEach(ask);
    });
  }
  for (const button of all('[data-shows]')) button.addEventListener('click', () => document.getElementById(button.dataset.shows).showModal());
  // What is copied stands in the page, in the button itself, or in the page that the link leads to.
  const take = async (from, event) => {
    const { copy, text, textOf } = from.dataset;
    if (textOf) event.preventDefault();
    try {
      if (textOf) {
        const found = fetch(from.href).then((answer) => answer.text())
          .then((html) => new DOMParser().parseFromString(html, 'text/html').getElementById(textOf).textContent);
        // Begun while the click counts, which some browsers ask for.
        await navigator.clipboard.write([new ClipboardItem({ 'text/plain': found.then((said) => new Blob([said], { type: 'text/plain' })) })]);
      } else await navigator.clipboard.writeText(text ?? document.getElementById(copy).textContent);
      const label = from.textContent;
      if (label === say.copied) return;
      from.textContent = say.copied;
      setTimeout(() => { from.textContent = label; }, 1500);
    } catch {
      if (textOf) location.href = from.href;
    }
  };
  document.addEventListener('click', (event) => {
    const opens = event.target.closest('.c-menu > summary');
    if (opens && !opens.parentElement.open) fill(opens.parentElement);
    const copy = event.target.closest('[data-copy], [data-text], [data-text-of]');
    if (copy && navigator.clipboard && !event.ctrlKey && !event.metaKey) take(copy, event);
    for (const menu of all('details.menu[open], details.ask[open]')) if (!menu.contains(event.target)) menu.open = false;
  });

  // A menu at the end of the page is seen as a whole.
  document.addEventListener('toggle', (event) => {
    if (event.target.matches('.c-menu[open], .c-menu [open]')) event.target.closest('.c-menu').querySelector('.sheet').scrollIntoView({ block: 'nearest' });
  }, true);

  // Ticked rows
  const bar = document.getElementById('act');
  const ticks = () => all('#list .c-tick input');
  let ticked = null;
  const count = () => {
    if (!bar) return;
    const on = ticks().filter((one) => one.checked).length;
    bar.classList.toggle('on', on > 0);
    const told = document.getElementById('ticked');
    told.textContent = told.dataset.some.replace('%s', new Intl.NumberFormat(root.lang).format(on));
    const every = document.getElementById('tick-all');
    every.checked = on > 0 && on === ticks().length;
    every.indeterminate = on > 0 && !every.checked;
    if (!on) for (const open of all('details.ask[open]', bar)) open.open = false;
  };
  const set = (boxes, on) => { for (const box of boxes) box.checked = on; count(); };
  if (bar) {
    document.addEventListener('click', (event) => {
      const box = event.target;
      if (box.id === 'tick-all') return set(ticks(), box.checked);
      if (box.id === 'untick') return set(ticks(), false);
      if (!box.matches('#list .c-tick input')) return;
      const boxes = ticks();
      const [from, to] = [boxes.findIndex((one) => one.value === ticked), boxes.indexOf(box)];
      ticked = box.value;
      // From the last that was ticked to this one.
      set(event.shiftKey && from >= 0 ? boxes.slice(Math.min(from, to), Math.max(from, to) + 1) : [box], box.checked);
    });
    // Without it a click with shift selects text.
    document.addEventListener('mousedown', (event) => { if (event.shiftKey && event.target.closest('.c-tick')) event.preventDefault(); });
    addEventListener('pageshow', count);
    count();
  }
  document.addEventListener('click', (event) => {
    const opens = event.target.closest('[data-open]');
    if (!opens) return;
    const menu = document.getElementById(opens.dataset.open);
    menu.open = true;
    menu.scrollIntoView({ block: 'center' });
    menu.querySelector('summary').focus();
  });

  // Keys
  const pages = { o: '/', t: '/timers', d: '/dead', u: '/upcoming', n: '/operations', h: '/hosts', p: '/punctuality', s: '/system' };
  const deeds = { r: ['run'], p: ['pause', 'resume'], R: ['replay'], c: ['cancel'], t: ['try-now'], e: ['edit'] };
  const rowAt = () => document.activeElement?.closest('.row');
  const deed = (names) => {
    const row = rowAt();
    const box = row?.querySelector('.c-tick input');
    if (row && names[0] === 'edit') return go(`[data-key="${row.dataset.key}"] a.c-name`, '/edit');
    // In a list it is done to the ticked rows, or to the one with the focus.
    if (bar && !ticks().some((one) => one.checked)) {
      if (!box) return;
      set([box], true);
    }
    const found = names.map((name) => document.querySelector(`[data-do="${name}"]`)).filter(Boolean);
    // A list has both of pause and resume: where all are paused, they go on.
    const rest = bar && ticks().some((one) => one.checked && one.closest('.row').querySelector('.state').dataset.state !== 'paused');
    const button = found[bar && !rest ? found.length - 1 : 0];
    if (!button) return;
    button.click();
    if (button.matches('summary')) setTimeout(() => button.parentElement.querySelector('button')?.focus());
  };
  let leader = 0;
  const go = (selector, more = '') => {
    const link = document.querySelector(selector);
    if (link && more) location.href = link.href + more;
    else link?.click();
  };
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Escape') {
      // The innermost.
      const open = all('details.menu[open], details.ask[open]').pop();
      if (open) { open.open = false; open.querySelector('summary').focus(); }
      else if (document.activeElement?.matches('input, textarea')) document.activeElement.blur();
      return;
    }
    if (say.keys === 'off' || event.ctrlKey || event.metaKey || event.altKey || event.target.matches('input:not([type="checkbox"]), textarea, select')) return;
    const follows = Date.now() - leader < 1500;
    leader = 0;
    if (follows && pages[event.key]) go(`a[href="${pages[event.key]}"]`);
    else if (event.key === 'g') leader = Date.now();
    else if (event.key === '/') { event.preventDefault(); document.getElementById('find')?.focus(); }
    else if (event.key === 'n') go('.bar .button.primary');
    else if (event.key === 'e') go('[data-edit]');
    else if (event.key === '?') document.getElementById('keys').showModal();
    else if (event.key === '.') { paused = !paused; if (paused) lit('wait', 'stopped'); else regions.forEach(ask); }
    else if (event.key === 'm') rowAt()?.querySelector('.c-menu summary')?.click();
    else if (event.key === 'x') rowAt()?.querySelector('.c-tick input')?.click();
    else if (deeds[event.key]) deed(deeds[event.key]);
    else if (event.key === 'j' || event.key === 'k') {
      const names = all('.rows .c-name');
      const at = names.indexOf(document.activeElement?.closest('.row')?.querySelector('.c-name'));
      names[Math.max(0, Math.min(names.length - 1, at + (event.key === 'j' ? 1 : -1)))]?.focus();
    }
  });
})();
