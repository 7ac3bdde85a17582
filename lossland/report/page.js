
"use strict";
(() => {
  const root = document.documentElement;
  root.dataset.script = "on";
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const axes = data.axes;
  const shape = axes.map((axis) => axis.values.length);
  const numRuns = shape.reduce((product, size) => product * size, 1);
  const classes = data.classes;

  // ---- numbers ------------------------------------------------------------------------------------------------------

  function bytes(text) {
    const raw = atob(text);
    const found = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) found[i] = raw.charCodeAt(i);
    return found;
  }
  // DataView rather than typed arrays: the file is little-endian whatever the machine.
  function numbers(text, kind) {
    const found = bytes(text);
    const view = new DataView(found.buffer);
    const size = { f4: 4, u4: 4, u2: 2, u1: 1 }[kind];
    const read = { f4: "getFloat32", u4: "getUint32", u2: "getUint16", u1: "getUint8" }[kind];
    const values = new { f4: Float32Array, u4: Uint32Array, u2: Uint16Array, u1: Uint8Array }[kind](found.length / size);
    for (let i = 0; i < values.length; i++) values[i] = view[read](i * size, true);
    return values;
  }
  const lazily = (make) => {
    let made;
    return () => (made === undefined ? (made = make()) : made);
  };

  const outcome = numbers(data.outcome, "u1");
  const threshold = numbers(data.threshold, "f4");
  const textOf = numbers(data.textOf, "u4");
  const explained = new Map(data.explained.map((told) => [told.run, told]));
  const figures = {};
  for (const [name, text] of Object.entries(data.figures)) figures[name] = numbers(text, "f4");
  const curves = data.curves.map((curve) => ({
    ...curve,
    codes: lazily(() => numbers(curve.codes, "u2")),
    ranges: lazily(() => numbers(curve.ranges, "f4")),
    log: lazily(() => numbers(curve.log, "u1")),
  }));

  function curveOf(curve, run) {
    const count = data.steps.length;
    const codes = curve.codes();
    const low = curve.ranges()[2 * run];
    const high = curve.ranges()[2 * run + 1];
    const isLog = curve.log()[run] > 0;
    const values = new Array(count);
    for (let i = 0; i < count; i++) {
      const code = codes[run * count + i];
      const level = low + ((code - 1) / 65532) * (high - low);
      values[i] = code === 0 ? NaN : code === 65534 ? 0 : code === 65535 ? Infinity : isLog ? Math.exp(level) : level;
    }
    return values;
  }

  function short(value) {
    if (typeof value !== "number") return String(value);
    if (value === Infinity) return "∞";
    if (!Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size >= 1e-3 && size < 1e5) return String(Number(value.toPrecision(3))).replace("-", "−");
    return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e").replace("-", "−").replace("e-", "e−");
  }
  // Values of an axis: whole numbers in full, others with as many digits as tell them apart.
  const textsOf = (values, most) => {
    if (values.some((value) => typeof value !== "number")) return values.map((value) => (value === null ? "–" : String(value)));
    const whole = values.every((value) => Number.isInteger(value) && Math.abs(value) < 1e9);
    if (whole) return values.map((value) => String(value).replace("-", "−"));
    let texts = values.map((value) => short(value));
    const different = new Set(values).size;
    for (let digits = 4; digits <= most && new Set(texts).size < different; digits++) {
      texts = values.map((value) => String(Number(value.toPrecision(digits))).replace("e+", "e").replace(/-/g, "−"));
    }
    return texts;
  };
  for (const axis of axes) {
    axis.texts = textsOf(axis.values, 17);
    for (const more of axis.with) more.texts = textsOf(more.values, 3);
  }
  const counted = (value) => (value >= 0 ? String(value) : "–");
  const superscript = (power) => String(power).replace(/[-0-9]/g, (digit) => (digit === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]));
  const tickText = (value) => {
    const size = Math.abs(value);
    if (value === 0 || (size >= 1e-3 && size < 1e4)) return String(Number(value.toPrecision(6)));
    const power = Math.floor(Math.log10(size) + 1e-9);
    const digit = value / 10 ** power;
    return (Math.abs(digit - 1) < 1e-6 ? "" : `${Number(digit.toPrecision(3))}×`) + "10" + superscript(power);
  };

  // ---- elements -----------------------------------------------------------------------------------------------------

  // Text goes in as text and nowhere as markup, so that a name may hold anything.
  function element(name, properties = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "class") made.className = value;
      else if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  }
  function drawn(name, properties = {}, text = null) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(properties)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    return made;
  }
  let colors = {};
  function readColors() {
    const style = getComputedStyle(root);
    const color = (name) => style.getPropertyValue(`--${name}`).trim();
    colors = {
      paper: color("paper"), ink: color("ink"), soft: color("soft"), rule: color("rule"), accent: color("accent"),
      classes: classes.map((entry) => color(entry.name)),
      low: [0, 1, 2, 3, 4].map((i) => color(`low-${i}`)),
      ratio: [0, 1, 2, 3, 4].map((i) => color(`ratio-${i}`)),
    };
  }
  function mixed(stops, share) {
    const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
    const first = Math.min(Math.floor(place), stops.length - 2);
    const part = (color, i) => parseInt(color.slice(1 + 2 * i, 3 + 2 * i), 16);
    const [a, b, rest] = [stops[first], stops[first + 1], place - first];
    return `rgb(${[0, 1, 2].map((i) => Math.round(part(a, i) + rest * (part(b, i) - part(a, i)))).join(",")})`;
  }
  function swatch(code) {
    const made = element("span", { class: "swatch", "aria-hidden": "true" });
    made.style.background = colors.classes[code];
    return made;
  }

  // ---- the grid -----------------------------------------------------------------------------------------------------

  const strides = shape.map((_, i) => shape.slice(i + 1).reduce((product, size) => product * size, 1));
  const placeOf = (run) => shape.map((size, i) => Math.floor(run / strides[i]) % size);
  const runAt = (place) => place.reduce((run, index, i) => run + index * strides[i], 0);
  const nameOf = (run) => {
    const place = placeOf(run);
    return axes
      .map((axis, i) => {
        const along = axis.with.map((more) => `${more.label} ${more.texts[place[i]]}`);
        return [`${axis.label} ${axis.texts[place[i]]}`, ...along].join(", ");
      })
      .join(", ");
  };
  const addressOf = (run) => {
    const place = placeOf(run);
    return axes.map((axis, i) => `${encodeURIComponent(axis.name)}=${encodeURIComponent(String(axis.values[place[i]]))}`).join(",");
  };
  function nearest(axis, text) {
    const numeric = typeof axis.values[0] === "number";
    const wanted = numeric ? Number(text) : text;
    if (numeric && !(text.trim() !== "" && Number.isFinite(wanted))) return null;
    if (!numeric) return axis.values.includes(wanted) ? axis.values.indexOf(wanted) : null;
    const positive = axis.log && wanted > 0;
    const distance = (value) => (positive ? Math.abs(Math.log(value / wanted)) : Math.abs(value - wanted));
    return axis.values.reduce((best, value, i) => (distance(value) < distance(axis.values[best]) ? i : best), 0);
  }
  function runOfAddress(text, run) {
    const place = placeOf(run);
    // Values without a name are those of the axes in turn: #0.1,3 of a learning rate and a seed.
    const unnamed = axes.map((_, i) => i).filter((i) => shape[i] > 1);
    for (const part of text.replace(/^#/, "").split(",")) {
      const cut = part.indexOf("=");
      let name, value;
      try {
        name = decodeURIComponent(part.slice(0, Math.max(cut, 0)));
        value = decodeURIComponent(part.slice(cut + 1));
      } catch {
        continue; // no address of ours
      }
      const next = cut < 0 ? unnamed.shift() : axes.findIndex((other) => other.name === name);
      const axis = next === undefined ? -1 : next;
      const index = axis < 0 ? null : nearest(axes[axis], value);
      if (index !== null) place[axis] = index;
    }
    return runAt(place);
  }

  // ---- state --------------------------------------------------------------------------------------------------------

  const long = axes.map((_, i) => i).filter((i) => shape[i] > 1);
  const preferred = (() => {
    const rate = axes.findIndex((axis) => axis.name === "learning_rate");
    const x = rate >= 0 && (shape[rate] > 1 || long.length === 0) ? rate : long.length ? long[0] : 0;
    const y = long.filter((i) => i !== x && axes[i].name !== "seed").concat(long.filter((i) => i !== x))[0];
    return [x, y === undefined ? -1 : y];
  })();
  const view = { x: preferred[0], y: preferred[1], measure: "outcome", shown: classes.map(() => true), logSteps: false };
  const first = (() => {
    // A run that rose and came back is the most telling, an explained one before others; else the one in the middle.
    for (const name of ["rises_and_recovers", "edge_of_stability", "diverges", "non_finite"]) {
      const code = classes.findIndex((entry) => entry.name === name);
      if (explained.size && ![...explained.keys()].some((run) => outcome[run] === code)) continue;
      const found = [];
      outcome.forEach((of, run) => of === code && (explained.has(run) || !explained.size) && found.push(run));
      if (found.length) return found[Math.floor(found.length / 2)];
    }
    return explained.size ? explained.keys().next().value : Math.floor(numRuns / 2);
  })();
  let chosen = runOfAddress(location.hash, first);
  let hovered = null;

  // ---- map ----------------------------------------------------------------------------------------------------------

  const map = byId("map");
  const pen = map.getContext("2d");
  const frame = { left: 0, top: 8, width: 0, height: 0 };
  const columns = () => shape[view.x];
  const rows = () => (view.y < 0 ? 1 : shape[view.y]);

  function runOfCell(column, row) {
    const place = placeOf(chosen);
    place[view.x] = column;
    if (view.y >= 0) place[view.y] = row;
    return runAt(place);
  }
  const measureNow = () => data.measures.find((measure) => measure.figure === view.measure);
  const rangeOf = {};
  function rangeFor(measure) {
    if (rangeOf[measure.figure]) return rangeOf[measure.figure];
    // Runs that overflow would take the whole scale for themselves: they lie at its end.
    const all = Array.from(figures[measure.figure]);
    const calm = all.filter((value, run) => Number.isFinite(value) && classes[outcome[run]].name !== "non_finite");
    const known = calm.length ? calm : all.filter((value) => Number.isFinite(value));
    const positive = known.some((value) => value > 0) && known.every((value) => value >= 0);
    const levels = known.filter((value) => !positive || value > 0).map((value) => (positive ? Math.log(value) : value)).sort((a, b) => a - b);
    const at = (share) => levels[Math.round(share * (levels.length - 1))];
    let [low, high] = [at(0.01), at(0.99)];
    if (measure.scale === "ratio" && positive) {
      const size = Math.min(Math.max(Math.abs(low), Math.abs(high), Math.log(1.5)), Math.log(100));
      [low, high] = [-size, size];
    }
    if (!(high > low)) [low, high] = [low - 0.5, low + 0.5];
    return (rangeOf[measure.figure] = { low, high, positive });
  }
  function colorOf(run) {
    const code = outcome[run];
    const measure = measureNow();
    if (!measure || classes[code].name === "not_run") return colors.classes[code];
    const value = figures[measure.figure][run];
    const { low, high, positive } = rangeFor(measure);
    if (!Number.isFinite(value)) return colors.classes[classes.length - 1];
    const level = positive ? Math.log(value) : value;
    return mixed(measure.scale === "ratio" ? colors.ratio : colors.low, (level - low) / (high - low));
  }
  function ticksAlong(axis, most) {
    const count = axis.values.length;
    if (count <= most) return axis.values.map((_, i) => i);
    const found = [];
    for (let i = 0; i < most; i++) found.push(Math.round((i * (count - 1)) / (most - 1)));
    return [...new Set(found)];
  }

  function drawMap() {
    const width = map.parentElement.clientWidth;
    const ratio = window.devicePixelRatio || 1;
    pen.font = "12px system-ui, sans-serif";
    const yAxis = view.y < 0 ? null : axes[view.y];
    const texts = yAxis ? ticksAlong(yAxis, 9).map((i) => yAxis.texts[i]) : [];
    const widest = Math.max(0, ...texts.map((text) => pen.measureText(text).width));
    frame.left = yAxis ? Math.ceil(widest) + 32 : 8;
    frame.width = width - frame.left - 14;
    frame.height = yAxis ? Math.max(160, Math.min(480, frame.width * 0.8, Math.max(12 * rows(), 200))) : 64;
    const height = frame.top + frame.height + 44;
    map.style.height = `${height}px`;
    map.width = Math.round(width * ratio);
    map.height = Math.round(height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = "12px system-ui, sans-serif";
    const edgeX = (i) => frame.left + Math.round(((i * frame.width) / columns()) * ratio) / ratio;
    const edgeY = (i) => frame.top + Math.round(((frame.height * (rows() - i)) / rows()) * ratio) / ratio;
    for (let row = 0; row < rows(); row++) {
      for (let column = 0; column < columns(); column++) {
        const run = runOfCell(column, row);
        const [left, right, top, bottom] = [edgeX(column), edgeX(column + 1), edgeY(row + 1), edgeY(row)];
        pen.globalAlpha = view.shown[outcome[run]] ? 1 : 0.1;
        pen.fillStyle = colorOf(run);
        pen.fillRect(left, top, right - left, bottom - top);
        if (classes[outcome[run]].name === "not_run") cross(left, right, top, bottom);
      }
    }
    pen.globalAlpha = 1;
    for (const run of explained.keys()) dot(run);
    pen.strokeStyle = colors.soft;
    pen.lineWidth = 1;
    pen.strokeRect(frame.left - 0.5, frame.top - 0.5, frame.width + 1, frame.height + 1);
    pen.fillStyle = colors.soft;
    pen.textBaseline = "top";
    pen.textAlign = "center";
    const xAxis = axes[view.x];
    let free = -Infinity;
    for (const i of ticksAlong(xAxis, Math.max(2, Math.floor(frame.width / 64)))) {
      const x = (edgeX(i) + edgeX(i + 1)) / 2;
      const half = pen.measureText(xAxis.texts[i]).width / 2;
      const at = Math.min(x, frame.left + frame.width + 12 - half);
      pen.fillRect(Math.round(x), frame.top + frame.height, 1, 4);
      if (at - half > free + 6) {
        pen.fillText(xAxis.texts[i], at, frame.top + frame.height + 7);
        free = at + half;
      }
    }
    pen.fillStyle = colors.ink;
    pen.fillText(xAxis.label, frame.left + frame.width / 2, frame.top + frame.height + 26);
    if (yAxis) {
      pen.fillStyle = colors.soft;
      pen.textAlign = "right";
      pen.textBaseline = "middle";
      for (const i of ticksAlong(yAxis, Math.max(2, Math.min(9, Math.floor(frame.height / 22))))) {
        const y = (edgeY(i) + edgeY(i + 1)) / 2;
        pen.fillRect(frame.left - 5, Math.round(y), 4, 1);
        pen.fillText(yAxis.texts[i], frame.left - 8, y);
      }
      pen.save();
      pen.translate(10, frame.top + frame.height / 2);
      pen.rotate(-Math.PI / 2);
      pen.textAlign = "center";
      pen.fillStyle = colors.ink;
      pen.fillText(yAxis.label, 0, 0);
      pen.restore();
    }
    if (hovered !== null && hovered !== chosen) outline(hovered, 1);
    outline(chosen, 2);

    function cross(left, right, top, bottom) {
      pen.strokeStyle = colors.rule;
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(left, bottom);
      pen.lineTo(right, top);
      pen.stroke();
    }
    // Only what lies in the plane that is shown.
    function dot(run) {
      const place = placeOf(run);
      const row = view.y < 0 ? 0 : place[view.y];
      if (runOfCell(place[view.x], row) !== run) return;
      const [left, right, top, bottom] = [edgeX(place[view.x]), edgeX(place[view.x] + 1), edgeY(row + 1), edgeY(row)];
      const size = Math.max(1.5, Math.min(4, 0.28 * Math.min(right - left, bottom - top)));
      pen.beginPath();
      pen.arc((left + right) / 2, (top + bottom) / 2, size, 0, 2 * Math.PI);
      pen.lineWidth = 2;
      pen.strokeStyle = colors.paper;
      pen.stroke();
      pen.fillStyle = colors.ink;
      pen.fill();
    }
    function outline(run, line) {
      const place = placeOf(run);
      const [left, right] = [edgeX(place[view.x]), edgeX(place[view.x] + 1)];
      const row = view.y < 0 ? 0 : place[view.y];
      const [top, bottom] = [edgeY(row + 1), edgeY(row)];
      pen.lineWidth = line + 2;
      pen.strokeStyle = colors.paper;
      pen.strokeRect(left - 1.5, top - 1.5, right - left + 3, bottom - top + 3);
      pen.lineWidth = line;
      pen.strokeStyle = colors.ink;
      pen.strokeRect(left - 1.5, top - 1.5, right - left + 3, bottom - top + 3);
    }
  }
  function cellUnder(event) {
    const box = map.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left - frame.left) / frame.width) * columns());
    const row = rows() - 1 - Math.floor(((event.clientY - box.top - frame.top) / frame.height) * rows());
    return column < 0 || column >= columns() || row < 0 || row >= rows() ? null : runOfCell(column, row);
  }
  function brief(run) {
    const measure = measureNow();
    const value = measure ? `, ${measure.label} ${short(figures[measure.figure][run])}` : "";
    const cause = explained.has(run) && explained.get(run).cause ? `, explained: ${explained.get(run).cause}` : "";
    return `${nameOf(run)}: ${classes[outcome[run]].label}${value}${cause}`;
  }

  map.addEventListener("pointermove", (event) => {
    const run = cellUnder(event);
    if (run === hovered) return;
    hovered = run;
    byId("hovered").textContent = run === null ? "" : brief(run);
    drawMap();
    showRun(run === null ? chosen : run);
  });
  map.addEventListener("pointerleave", () => {
    if (hovered === null) return;
    hovered = null;
    byId("hovered").textContent = "";
    drawMap();
    showRun(chosen);
  });
  map.addEventListener("click", (event) => {
    const run = cellUnder(event);
    if (run !== null) choose(run);
  });
  map.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const others = otherAxes();
    const stride = event.shiftKey ? 10 : 1;
    const moves = {
      ArrowLeft: [view.x, -stride], ArrowRight: [view.x, stride], ArrowDown: [view.y, -stride], ArrowUp: [view.y, stride],
      Home: [view.x, -Infinity], End: [view.x, Infinity],
      PageDown: [others.length ? others[0] : -1, -1], PageUp: [others.length ? others[0] : -1, 1],
    };
    const move = moves[event.key];
    if (!move || move[0] < 0) return;
    event.preventDefault();
    const place = placeOf(chosen);
    place[move[0]] = Math.min(Math.max(place[move[0]] + move[1], 0), shape[move[0]] - 1);
    hovered = null;
    choose(runAt(place));
  });

  // ---- controls -----------------------------------------------------------------------------------------------------

  const otherAxes = () => long.filter((i) => i !== view.x && i !== view.y);
  function select(label, options, value, changed) {
    const made = element("select", { onchange: () => changed(made.value) });
    for (const [key, text] of options) made.append(element("option", { value: String(key) }, text));
    made.value = String(value);
    return element("label", {}, label, made);
  }
  function drawControls() {
    const host = byId("controls");
    const active = document.activeElement && host.contains(document.activeElement)
      ? [...host.querySelectorAll("select")].indexOf(document.activeElement) : -1;
    host.replaceChildren();
    const measures = [["outcome", "outcome"], ...data.measures.map((measure) => [measure.figure, measure.label])];
    host.append(select("Colour", measures, view.measure, (value) => {
      view.measure = value;
      drawAll();
    }));
    if (long.length > 1) {
      const choices = long.map((i) => [i, axes[i].label]);
      host.append(select("Across", choices, view.x, (value) => {
        if (Number(value) === view.y) view.y = view.x;
        view.x = Number(value);
        drawAll();
      }));
      host.append(select("Up", choices, view.y, (value) => {
        if (Number(value) === view.x) view.x = view.y;
        view.y = Number(value);
        drawAll();
      }));
    }
    const place = placeOf(chosen);
    for (const i of otherAxes()) {
      host.append(select(axes[i].label, axes[i].texts.map((text, j) => [j, text]), place[i], (value) => {
        const next = placeOf(chosen);
        next[i] = Number(value);
        choose(runAt(next));
      }));
    }
    if (active >= 0 && host.querySelectorAll("select")[active]) host.querySelectorAll("select")[active].focus();
    const others = otherAxes();
    byId("other-help").hidden = others.length === 0;
    byId("other-name").textContent = others.length ? axes[others[0]].label : "";
  }
  function drawFilter() {
    const host = byId("filter");
    for (const old of [...host.querySelectorAll("label")]) old.remove();
    classes.forEach((entry, code) => {
      if (!entry.count) return;
      const box = element("input", { type: "checkbox", onchange: () => {
        view.shown[code] = box.checked;
        page = 0;
        drawMap();
        drawTable();
      } });
      box.checked = view.shown[code];
      const parts = [box, entry.label, element("span", { class: "count" }, String(entry.count))];
      if (!measureNow()) parts.splice(1, 0, swatch(code));
      host.append(element("label", { title: entry.text }, ...parts));
    });
  }
  function drawScale() {
    const host = byId("scale");
    const measure = measureNow();
    host.hidden = !measure;
    host.replaceChildren();
    if (!measure) return;
    const { low, high, positive } = rangeFor(measure);
    const bar = element("div", { class: "bar", "aria-hidden": "true" });
    bar.style.background = `linear-gradient(to right, ${(measure.scale === "ratio" ? colors.ratio : colors.low).join(", ")})`;
    const ends = element("div", { class: "ends" });
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      const level = low + share * (high - low);
      const text = short(positive ? Math.exp(level) : level);
      ends.append(element("span", {}, share === 0 ? `≤ ${text}` : share === 1 ? `≥ ${text}` : text));
    }
    host.append(bar, ends, element("div", {}, measure.text));
  }

  // ---- one run ------------------------------------------------------------------------------------------------------

  function showRun(run) {
    byId("run-heading").textContent = nameOf(run);
    const entry = classes[outcome[run]];
    byId("verdict").replaceChildren(swatch(outcome[run]), element("b", {}, entry.label), ` ${entry.text}`);
    const facts = [];
    const add = (label, name, suffix = "") => {
      const value = figures[name][run];
      if (Number.isFinite(value)) facts.push([label, short(value) + suffix]);
    };
    const step = (label, name) => figures[name][run] >= 0 && facts.push([label, `step ${figures[name][run]}`]);
    add("final loss", "last");
    add("peak loss", "peak");
    add("sharpness / threshold, start", "start");
    add("sharpness / threshold, end", "end");
    if (Number.isFinite(threshold[run]) && data.thresholdOf) facts.push(["threshold", short(threshold[run])]);
    step("first rise", "first_rise");
    if (figures.num_rises[run] > 0) facts.push(["rises", counted(figures.num_rises[run])]);
    step("not finite from", "first_bad");
    byId("facts").replaceChildren(
      ...facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
    );
    byId("story").replaceChildren(...storyOf(run));
    drawCharts(run);
    root.dataset.run = String(run);
  }
  function storyOf(run) {
    const told = explained.get(run);
    if (!told) return [data.texts[textOf[run]]];
    if (!told.cause) return [told.text];
    const sure = `confidence ${Math.round(100 * told.confidence)} %`;
    const parts = [
      element("h3", { class: "cause" }, told.cause, " ", element("span", { class: "sure" }, sure)),
      element("p", {}, told.text),
    ];
    const list = (heading, items) => items.length && parts.push(element("h4", {}, heading), element("ul", {}, ...items));
    list("What would have changed it", told.remedies.map((remedy) => {
      const [word, name] = { true: ["✓ verified by replay", "yes"], false: ["✗ refuted by replay", "no"] }[remedy.verified]
        || ["not replayed", "open"];
      const effect = remedy.verified === null ? ""
        : `: largest rise × ${short(remedy.measured ?? Infinity)} instead of × ${short(remedy.unchanged ?? Infinity)}`;
      return element("li", {}, element("b", {}, remedy.change), ` – ${remedy.predicted}; `,
        element("span", { class: `replay ${name}` }, word), effect);
    }));
    list("Found besides", told.findings.map((text) => element("li", {}, text)));
    if (told.evidence.length) {
      const rows = told.evidence.map(([name, value, units]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, `${typeof value === "string" ? value : short(value)} ${units}`.trim())));
      parts.push(element("h4", {}, "Numbers"), element("dl", { class: "numbers" }, ...rows));
    }
    list("Not tested", told.untested.map((text) => element("li", {}, text)));
    return parts;
  }
  function drawExplained() {
    const host = byId("explained");
    host.hidden = explained.size === 0;
    if (!explained.size) return;
    const order = [...explained.keys()].sort((a, b) => a - b);
    const turn = (by) => () => {
      const next = by > 0 ? order.find((run) => run > chosen) : [...order].reverse().find((run) => run < chosen);
      hovered = null;
      choose(next ?? order[by > 0 ? 0 : order.length - 1]);
    };
    host.replaceChildren(
      element("button", { type: "button", "aria-label": "previous explained run", onclick: turn(-1) }, "‹"),
      element("button", { type: "button", "aria-label": "next explained run", onclick: turn(1) }, "›"),
      element("span", {}, `${order.length} explained ${order.length === 1 ? "run" : "runs"}, dotted on the map`),
    );
  }
  function choose(run) {
    chosen = run;
    const address = `#${addressOf(run)}`;
    if (location.hash !== address) {
      try {
        history.replaceState(null, "", address);
      } catch {
        location.hash = address;
      }
    }
    drawControls();
    drawMap();
    showRun(run);
    markRow();
    map.setAttribute("aria-label", brief(run));
    byId("said").textContent = brief(run);
  }

  // ---- charts -------------------------------------------------------------------------------------------------------

  const extra = curves.map((_, i) => i).filter((i) => !["loss", data.thresholdOf].includes(curves[i].name));
  let third = extra.length ? extra[0] : -1;
  function drawCurveControls() {
    const host = byId("curve-controls");
    host.replaceChildren();
    if (!curves.length) return;
    const box = element("input", { type: "checkbox", onchange: () => {
      view.logSteps = box.checked;
      showRun(chosen);
    } });
    box.checked = view.logSteps;
    if (extra.length > 1) {
      host.append(select("Third chart", extra.map((i) => [i, curves[i].label]), third, (value) => {
        third = Number(value);
        showRun(chosen);
      }));
    }
    host.append(element("label", { class: "check" }, box, "steps on a log scale"));
  }
  const charts = new Map();
  function drawCharts(run) {
    const wanted = [];
    const loss = curves.find((curve) => curve.name === "loss");
    const sharp = curves.find((curve) => curve.name === data.thresholdOf);
    if (loss) wanted.push([loss, NaN]);
    if (sharp) wanted.push([sharp, threshold[run]]);
    if (third >= 0) wanted.push([curves[third], NaN]);
    const host = byId("charts");
    if (!curves.length) {
      host.textContent = data.leftOut
        ? "With so many runs the curves were left out; write a report of a part of them."
        : "No record of these runs is a curve.";
    }
    const names = new Set(wanted.map(([curve]) => curve.name));
    for (const [name, chart] of charts) {
      if (!names.has(name)) {
        chart.remove();
        charts.delete(name);
      }
    }
    for (const [curve, bound] of wanted) {
      if (!charts.has(curve.name)) {
        charts.set(curve.name, chartOf(curve));
        host.append(charts.get(curve.name));
      }
      charts.get(curve.name).draw(run, bound);
    }
  }

  function niceTicks(low, high, isLog, most) {
    if (isLog) {
      const [bottom, top] = [Math.log10(low), Math.log10(high)];
      for (const digits of [[1, 2, 5], [1, 3], [1]]) {
        const found = [];
        for (let power = Math.floor(bottom); power <= Math.ceil(top); power++) {
          for (const digit of digits) found.push(Number(`${digit}e${power}`));
        }
        const inside = found.filter((value) => Number.isFinite(value) && value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9));
        if (inside.length >= 2 && inside.length <= most) return inside;
        if (digits.length === 1 && inside.length > most) {
          const stride = Math.ceil(inside.length / most);
          return inside.filter((value) => Math.round(Math.log10(value)) % stride === 0);
        }
      }
    }
    const rough = (high - low) / Math.max(1, most - 1);
    const power = 10 ** Math.floor(Math.log10(rough));
    const stride = [1, 2, 5, 10].map((digit) => digit * power).find((value) => value >= rough * (1 - 1e-9));
    const found = [];
    for (let i = Math.ceil(low / stride); i * stride <= high * (1 + 1e-12) + 1e-300; i++) found.push(i * stride);
    return found;
  }

  function chartOf(curve) {
    const value = element("span", { class: "value", "aria-live": "polite" });
    const title = curve.label + (curve.units ? ` (${curve.units})` : "");
    const svg = drawn("svg", { tabindex: "0", role: "img" });
    const host = element("div", { class: "chart", title: curve.text },
      element("div", { class: "chart-head" }, element("h3", {}, title), value), svg);
    const place = Math.max(0, ["loss", data.thresholdOf].indexOf(curve.name));
    const color = `var(--curve-${["loss", data.thresholdOf].includes(curve.name) ? place : 2})`;
    let cursor = null;
    let now = null;

    host.draw = (run, bound) => {
      now = { run, bound, values: curveOf(curve, run) };
      paint();
    };
    function paint() {
      const { run, bound, values } = now;
      const width = Math.max(220, byId("charts").clientWidth);
      const height = 176;
      const box = { left: 56, right: width - 12, top: 8, bottom: height - 30 };
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.style.height = `${height}px`;
      svg.replaceChildren();
      const finite = values.filter((v) => Number.isFinite(v));
      svg.setAttribute("aria-label", finite.length
        ? `${title} over steps: from ${short(finite[0])} to ${short(finite[finite.length - 1])}, between ` +
          `${short(Math.min(...finite))} and ${short(Math.max(...finite))}. Arrow keys read it step by step.`
        : `${title}: nothing was recorded`);
      const shown = Number.isFinite(bound) ? [...finite, bound] : finite;
      if (!shown.length) {
        value.textContent = "nothing was recorded";
        return;
      }
      // Zeros lie at the foot of a log scale, which goes on down past everything.
      const positive = shown.filter((v) => v > 0);
      const isLog = positive.length > 0 && shown.every((v) => v >= 0);
      const scaled = isLog ? positive : shown;
      let [low, high] = [Math.min(...scaled), Math.max(...scaled)];
      if (isLog) {
        // Of logarithms, not of the quotient, which overflows where losses span all that a double holds.
        const room = Math.max(0.06 * (Math.log(high) - Math.log(low)), 0.05);
        [low, high] = [Math.max(low * Math.exp(-room), Number.MIN_VALUE), high * Math.exp(room)];
      } else {
        const room = 0.06 * (high - low) || 1;
        [low, high] = [low - room, high + room];
      }
      high = Math.min(high, Number.MAX_VALUE);
      const up = (v) => (isLog ? (Math.log(v) - Math.log(low)) / (Math.log(high) - Math.log(low)) : (v - low) / (high - low));
      const y = (v) => box.bottom - Math.max(0, up(v)) * (box.bottom - box.top);
      const last = data.steps[data.steps.length - 1];
      const along = (step) => (!(last > 0) ? 0 : view.logSteps ? Math.log1p(step) / Math.log1p(last) : step / last);
      const x = (step) => box.left + along(step) * (box.right - box.left);
      for (const tick of niceTicks(low, high, isLog, 6)) {
        svg.append(drawn("line", { class: "grid", x1: box.left, x2: box.right, y1: y(tick), y2: y(tick) }));
        svg.append(drawn("text", { x: box.left - 7, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick)));
      }
      const stepTicks = !(last > 1) ? data.steps : view.logSteps ? [0, ...niceTicks(1, last, true, 6)] : niceTicks(0, last, false, 7);
      for (const tick of stepTicks) {
        svg.append(drawn("line", { class: "frame", x1: x(tick), x2: x(tick), y1: box.bottom, y2: box.bottom + 4 }));
        svg.append(drawn("text", { x: x(tick), y: box.bottom + 17, "text-anchor": "middle" }, tickText(tick)));
      }
      svg.append(drawn("text", { x: box.right, y: height - 2, "text-anchor": "end" }, "step"));
      svg.append(drawn("polyline", { class: "frame", points: `${box.left},${box.top} ${box.left},${box.bottom} ${box.right},${box.bottom}` }));
      const names = [];
      if (Number.isFinite(bound)) {
        svg.append(drawn("line", { class: "bound", x1: box.left, x2: box.right, y1: y(bound), y2: y(bound) }));
        names.push(() => {
          // On the side of the line, and at the end, where the curve is not.
          const near = (from, to) => values.filter((v, i) => Number.isFinite(v) && along(data.steps[i]) >= from && along(data.steps[i]) <= to);
          const free = [[0.7, 1, "end"], [0, 0.3, "start"]].flatMap(([from, to, anchor]) => [-1, 1].map((side) => {
            const gaps = near(from, to).map((v) => side * (y(v) - y(bound))).filter((gap) => gap > -3);
            const inside = side < 0 ? y(bound) - box.top : box.bottom - y(bound);
            return { anchor, side, room: Math.min(inside, ...gaps) };
          }));
          const best = free.reduce((a, b) => (a.room >= 18 || b.room <= a.room ? a : b));
          svg.append(drawn("text", { class: "bound-name", x: best.anchor === "end" ? box.right - 2 : box.left + 6,
            y: y(bound) + (best.side < 0 ? -6 : 15), "text-anchor": best.anchor }, `threshold ${short(bound)}`));
        });
      }
      const bad = figures.first_bad[run];
      if (bad >= 0) {
        const at = Math.min(x(bad), box.right); // the last record may lie before it
        svg.append(drawn("line", { class: "end", x1: at, x2: at, y1: box.top, y2: box.bottom }));
        const right = at < (box.left + box.right) / 2;
        names.push(() => svg.append(drawn("text", { class: "bound-name", x: at + (right ? 5 : -5), y: box.top + 11, "text-anchor": right ? "start" : "end" },
          `loss not finite from step ${bad}`)));
      }
      let path = "";
      let pending = true;
      values.forEach((v, i) => {
        if (Number.isNaN(v)) {
          pending = true;
          return;
        }
        const height = v === Infinity ? box.top : y(v);
        path += `${pending ? "M" : "L"}${x(data.steps[i]).toFixed(1)},${height.toFixed(1)}`;
        pending = false;
      });
      const line = drawn("path", { class: "line", d: path });
      line.style.stroke = color;
      svg.append(line);
      for (const name of names) name();
      if (cursor !== null) {
        const step = data.steps[cursor];
        svg.append(drawn("line", { class: "cursor", x1: x(step), x2: x(step), y1: box.top, y2: box.bottom }));
        const v = values[cursor];
        if (Number.isFinite(v)) {
          const dot = drawn("circle", { cx: x(step), cy: y(v), r: 3.5 });
          dot.style.fill = color;
          svg.append(dot);
        }
        const ratio = Number.isFinite(bound) && Number.isFinite(v) ? `, ${short(v / bound)} × threshold` : "";
        value.textContent = `step ${data.exact ? "" : "≈ "}${step}: ${short(v)}${ratio}`;
      } else {
        value.textContent = "";
      }
      host.stepUnder = (clientX) => {
        const at = (clientX - svg.getBoundingClientRect().left) * (width / svg.getBoundingClientRect().width);
        let best = 0;
        data.steps.forEach((step, i) => {
          if (Math.abs(x(step) - at) < Math.abs(x(data.steps[best]) - at)) best = i;
        });
        return best;
      };
    }
    const put = (index) => {
      cursor = index;
      paint();
    };
    svg.addEventListener("pointermove", (event) => host.stepUnder && put(host.stepUnder(event.clientX)));
    svg.addEventListener("pointerleave", () => put(null));
    svg.addEventListener("blur", () => put(null));
    svg.addEventListener("keydown", (event) => {
      const count = data.steps.length;
      const moves = { ArrowLeft: (cursor ?? count) - 1, ArrowRight: (cursor ?? -1) + 1, Home: 0, End: count - 1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      put(Math.min(Math.max(moves[event.key], 0), count - 1));
    });
    return host;
  }

  // ---- table --------------------------------------------------------------------------------------------------------

  const PER_PAGE = 100;
  let page = 0;
  const sorting = { column: -1, down: false };
  const tableColumns = [
    ...axes.map((axis, i) => ({
      label: axis.label, value: (run) => axis.values[placeOf(run)[i]], text: (run) => axis.texts[placeOf(run)[i]],
      word: typeof axis.values[0] !== "number",
    })),
    { label: "outcome", value: (run) => classes[outcome[run]].label, word: true, outcome: true },
    ...(explained.size ? [{ label: "cause", value: (run) => explained.get(run)?.cause ?? "", word: true }] : []),
    ...[["final loss", "last"], ["peak loss", "peak"], ["sharpness / threshold, start", "start"],
      ["sharpness / threshold, end", "end"]].map(([label, name]) => ({ label, value: (run) => figures[name][run] })),
    ...[["first rise", "first_rise"], ["not finite from", "first_bad"]].map(([label, name]) => ({
      label, value: (run) => (figures[name][run] < 0 ? NaN : figures[name][run]), text: (run) => counted(figures[name][run]),
    })),
  ];
  function rowsInOrder() {
    const found = [];
    for (let run = 0; run < numRuns; run++) if (view.shown[outcome[run]]) found.push(run);
    if (sorting.column < 0) return found;
    const { value } = tableColumns[sorting.column];
    const sign = sorting.down ? -1 : 1;
    const missing = (v) => v === "" || (typeof v === "number" && Number.isNaN(v));
    return found
      .map((run) => [value(run), run])
      .sort(([a, i], [b, j]) => {
        if (missing(a) || missing(b)) return Number(missing(a)) - Number(missing(b)) || i - j;
        return (a < b ? -sign : a > b ? sign : 0) || i - j;
      })
      .map(([, run]) => run);
  }
  function drawTable() {
    if (byId("table").hidden) return;
    const order = rowsInOrder();
    const pages = Math.max(1, Math.ceil(order.length / PER_PAGE));
    page = Math.min(page, pages - 1);
    const head = element("tr");
    tableColumns.forEach((column, i) => {
      const active = sorting.column === i;
      const arrow = active ? (sorting.down ? " ↓" : " ↑") : "";
      head.append(element("th", { scope: "col", class: column.word ? "word" : "", "aria-sort": active ? (sorting.down ? "descending" : "ascending") : "none" },
        element("button", { type: "button", onclick: () => {
          sorting.down = active && !sorting.down;
          sorting.column = i;
          page = 0;
          drawTable();
          byId("rows").querySelectorAll("th button")[i].focus();
        } }, column.label + arrow)));
    });
    const body = element("tbody");
    for (const run of order.slice(page * PER_PAGE, (page + 1) * PER_PAGE)) {
      const row = element("tr", { "data-run": String(run) });
      tableColumns.forEach((column, i) => {
        const text = column.text ? column.text(run) : short(column.value(run));
        const cell = element("td", { class: column.word ? "word" : "" });
        if (i === 0) {
          cell.append(element("button", { type: "button", "aria-label": `choose ${nameOf(run)}`, onclick: () => choose(run) }, text));
        } else if (column.outcome) cell.append(swatch(outcome[run]), text);
        else cell.append(text);
        row.append(cell);
      });
      body.append(row);
    }
    byId("rows").replaceChildren(element("thead", {}, head), body);
    const turn = (by) => () => {
      page += by;
      drawTable();
    };
    const back = element("button", { type: "button", onclick: turn(-1) }, "Previous");
    const forth = element("button", { type: "button", onclick: turn(1) }, "Next");
    back.disabled = page === 0;
    forth.disabled = page === pages - 1;
    byId("pager").replaceChildren(back, forth, element("span", {}, `${order.length} runs, page ${page + 1} of ${pages}`));
    markRow();
  }
  function markRow() {
    for (const row of byId("rows").querySelectorAll("tbody tr")) row.classList.toggle("chosen", row.dataset.run === String(chosen));
  }
  byId("table-toggle").addEventListener("click", () => {
    const hidden = !byId("table").hidden;
    byId("table").hidden = hidden;
    byId("table-toggle").setAttribute("aria-expanded", String(!hidden));
    byId("table-toggle").textContent = hidden ? "Show table" : "Hide table";
    drawTable();
    if (!hidden) byId("table").scrollIntoView({ block: "start" });
  });

  // ---- the whole page -----------------------------------------------------------------------------------------------

  const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
  let theme = null;
  function applyTheme() {
    const dark = theme === null ? prefersDark.matches : theme === "dark";
    root.dataset.theme = dark ? "dark" : "light";
    byId("theme").textContent = dark ? "Light theme" : "Dark theme";
    readColors();
  }
  byId("theme").addEventListener("click", () => {
    theme = root.dataset.theme === "dark" ? "light" : "dark";
    applyTheme();
    drawAll();
  });
  prefersDark.addEventListener("change", () => {
    applyTheme();
    drawAll();
  });
  window.addEventListener("hashchange", () => choose(runOfAddress(location.hash, chosen)));
  function drawAll() {
    drawControls();
    drawExplained();
    drawFilter();
    drawScale();
    drawCurveControls();
    drawMap();
    showRun(chosen);
    drawTable();
  }
  let drawnWidth = 0;
  new ResizeObserver(() => {
    if (root.clientWidth === drawnWidth) return;
    drawnWidth = root.clientWidth;
    drawMap();
    showRun(hovered === null ? chosen : hovered);
  }).observe(root);

  byId("title").textContent = data.title;
  const size = axes.filter((axis) => axis.values.length > 1).map((axis) => `${axis.label} (${axis.values.length})`).join(" × ");
  byId("counts").textContent = `${numRuns.toLocaleString("en")} runs${size ? `: ${size}` : ""}`;
  for (const [name, text] of data.about) byId("about-list").append(element("dt", {}, name), element("dd", {}, text));
  applyTheme();
  drawnWidth = root.clientWidth;
  drawAll();
  map.setAttribute("aria-label", brief(chosen));
  root.dataset.ready = String(Math.round(performance.now()));
})();
