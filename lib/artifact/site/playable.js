// Shows the precomputed answers in #data: a reader picks a model, a scene, an edit and a slot. No library, no server.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const FIRST = "5"; // all background from the mirror picture: the objects stay, and the answer may change
const COLOURS = { other: "#cc79a7", own: "#e69f00" }; // as in the figures of notebook 02
const $ = (id) => document.getElementById(id);

function svg(name, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function html(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// What is chosen ------------------------------------------------------------------------------------------------------

const checked = (name) => document.querySelector(`input[name=${name}]:checked`).value;

function choice() {
  const model = DATA.models[$("model").selectedIndex];
  const scene = model.scenes[Number(checked("scene"))];
  const number = checked("edit");
  return { model, scene, number, edit: DATA.edits[number], tokens: scene.edits[number], slot: Number($("slot").value) };
}

function radios(place, name, items, show, first) {
  const before = document.querySelector(`input[name=${name}]:checked`)?.value ?? first;
  $(place).querySelector(".choices").replaceChildren(...items.map(([value, label]) => {
    const input = html("input", { type: "radio", name, value, "aria-label": label });
    input.checked = before === value;
    return html("label", { title: label }, input, show(value));
  }));
}

function offerScenes() {
  const { scenes, layers, about } = DATA.models[$("model").selectedIndex];
  $("about").textContent = about;
  $("slot").max = layers;
  const thumbnail = (value) => html("img", { src: scenes[value].clean, alt: "" });
  radios("scenes", "scene", scenes.map((scene, k) => [String(k), `${scene.label}: ${scene.question}`]), thumbnail, "0");
}

// Numbers -------------------------------------------------------------------------------------------------------------

const swing = ([target, opposite]) => opposite - target;

function effect(scene, answers) {
  const [from, to] = [swing(scene.before), swing(scene.other)];
  return (swing(answers) - from) / (to - from);
}

const digits = (value) => (Math.round(value * 100) / 100 + 0).toFixed(2).replace("-0.00", "0.00");

function inWords(value) {
  if (value > 0.75) return "the answer becomes that of the mirror picture.";
  if (value < 0.25) return "the answer stays that of the clean picture.";
  return "the answer stands between those of the two pictures.";
}

function depth(slot, layers) {
  if (slot === 0) return "0: the input of the first layer";
  if (slot === layers) return `${slot}: the output of the last layer`;
  return `${slot}: after ${slot} of ${layers} layers`;
}

// Pictures ------------------------------------------------------------------------------------------------------------

// A crossed edit or a change of places writes two regions, x and y; an edit in place writes one, x.
function regions({ targets, sources }) {
  const inPlace = targets.every((token, k) => token === sources[k]);
  const half = inPlace ? targets.length : targets.length / 2;
  return { targets: [targets.slice(0, half), targets.slice(half)], sources: [sources.slice(0, half), sources.slice(half)] };
}

// The tokens of a region as tinted cells, and its letter: in the corner of a large region, above a small one.
function marked(tokens, side, colour, letter) {
  if (!tokens.length) return [];
  const [columns, rows] = [tokens.map((token) => token % side), tokens.map((token) => Math.floor(token / side))];
  const boxes = tokens.map((_, k) => svg("rect", { x: columns[k] + 0.06, y: rows[k] + 0.06, width: 0.88, height: 0.88,
    fill: colour, "fill-opacity": 0.35, stroke: colour, "stroke-width": 0.12 }));
  const [left, right, top] = [Math.min(...columns), Math.max(...columns) + 1, Math.min(...rows)];
  const place = right - left > 3 ? { x: left + 0.9, y: top + 1.4 } : { x: (left + right) / 2, y: Math.max(1.4, top - 0.3) };
  return [...boxes, svg("text", { ...place, "font-size": 1.7, "font-weight": "bold", "text-anchor": "middle",
    "font-family": "Arial, sans-serif", fill: "#000", stroke: "#fff", "stroke-width": 0.35, "paint-order": "stroke" }, letter)];
}

function draw(id, picture, side, marks, words) {
  const node = $(id);
  node.setAttribute("viewBox", `0 0 ${side} ${side}`);
  node.setAttribute("aria-label", words);
  node.replaceChildren(svg("image", { href: picture, width: side, height: side }), ...marks);
}

// One patch of a picture, moved from token `from` to token `to`.
function patch(picture, side, from, to) {
  const [x, y, u, v] = [from % side, Math.floor(from / side), to % side, Math.floor(to / side)];
  return svg("svg", { x: u, y: v, width: 1, height: 1, viewBox: `${x} ${y} 1 1` },
    svg("image", { href: picture, width: side, height: side }));
}

function showPictures({ scene, tokens }) {
  const { side } = scene;
  const colour = tokens.own ? COLOURS.own : COLOURS.other;
  const source = tokens.own ? scene.clean : scene.mirror;
  const { targets, sources } = regions(tokens);
  const all = (parts) => parts.flatMap((part, k) => marked(part, side, colour, "xy"[k]));
  const from = tokens.own ? "the clean picture itself" : "the mirror picture";
  draw("from", source, side, all(sources), `${from}, with the tokens marked whose vectors are taken`);
  draw("into", scene.clean, side, all(targets), "clean picture, with the tokens marked that are overwritten");
  const moved = tokens.targets.map((to, k) => patch(source, side, tokens.sources[k], to));
  draw("result", scene.clean, side, moved, "clean picture with the overwritten patches replaced by those they were taken from");
  $("from-said").textContent = `Taken from: ${from}, ${tokens.sources.length} of ${side * side} tokens.`;
  $("into-said").textContent = "Written into: the clean picture" + (targets[1].length
    ? "; x takes the vectors marked x on the left, y those marked y." : ", each token in its own place.");
}

// Answers -------------------------------------------------------------------------------------------------------------

function bar(value) {
  const inside = html("i", {});
  inside.style.width = `${100 * value}%`;
  return html("td", {}, digits(value), html("span", { class: "bar" }, inside));
}

function showAnswers({ scene, number, slot, model }) {
  const after = scene.after[number][slot];
  const notes = ["clean picture's answer", "mirror's answer", "the object asked about"];
  const rows = scene.words.map((word, k) =>
    html("tr", {}, html("th", { scope: "row" }, word, html("br", {}), html("small", {}, notes[k])),
      bar(scene.before[k]), bar(after[k]), bar(scene.other[k])));
  const rest = (three) => Math.max(0, 1 - three.reduce((sum, value) => sum + value, 0));
  rows.push(html("tr", {}, html("th", { scope: "row" }, "any other word"), ...[scene.before, after, scene.other]
    .map((three) => bar(rest(three)))));
  document.querySelector("#answers tbody").replaceChildren(...rows);
  const value = effect(scene, after);
  const all = model.scenes.map((each) => effect(each, each.after[number][slot]));
  const mean = all.reduce((sum, each) => sum + each, 0) / all.length;
  const range = `${digits(mean)} on average (${digits(Math.min(...all))} to ${digits(Math.max(...all))})`;
  const unsure = scene.correct ? ""
    : " (Without edits this model does not answer both pictures correctly, so this pair says little.)";
  $("said").textContent = `Edit ${number} at slot ${slot} of ${model.name}: effect ${digits(value)}; ${inWords(value)}${unsure}`;
  $("average").textContent = `Over the ${all.length} scenes of this page: ${range}.`;
}

function showPredicted({ edit }) {
  const rows = Object.entries(edit.predicted).map(([rival, value]) =>
    html("tr", {}, html("th", { scope: "row" }, `${rival}: ${DATA.rivals[rival]}`),
      html("td", {}, (value === null ? "between 0 and 1, more with more tokens" : String(value)) +
        (edit.rival === rival ? " (the edit made for this one)" : ""))));
  document.querySelector("#predicted tbody").replaceChildren(...rows);
}

function showCurve({ scene, number, slot, model }) {
  const values = scene.after[number].map((answers) => effect(scene, answers));
  const x = (k) => 34 + (276 * k) / model.layers;
  const y = (value) => 115 - 95 * Math.max(-0.1, Math.min(1.1, value));
  const text = { "font-size": 11, "font-family": "Arial, sans-serif", fill: "#222" };
  const levels = [0, 0.5, 1].flatMap((level) => [
    svg("line", { x1: 34, x2: 310, y1: y(level), y2: y(level), stroke: "#ccc" }),
    svg("text", { ...text, x: 28, y: y(level) + 4, "text-anchor": "end" }, String(level))]);
  const points = values.flatMap((value, k) => [
    svg("circle", { cx: x(k), cy: y(value), r: k === slot ? 6 : 3, fill: k === slot ? "#d55e00" : "#0072b2" }),
    svg("text", { ...text, x: x(k), y: 134, "text-anchor": "middle" }, String(k))]);
  const line = (numbers, stroke, width) => svg("polyline", { fill: "none", stroke, "stroke-width": width,
    points: numbers.map((value, k) => `${x(k)},${y(value)}`).join(" ") });
  const others = model.scenes.map((each) => line(each.after[number].map((answers) => effect(each, answers)), "#aaa", 1));
  const names = [svg("text", { ...text, x: 172, y: 148, "text-anchor": "middle" }, "slot"),
    svg("text", { ...text, x: 0, y: 10 }, "effect")];
  $("curve").replaceChildren(...levels, ...others, line(values, "#0072b2", 2.5), ...points, ...names);
  $("curve").setAttribute("aria-label", `effect by slot: ${values.map(digits).join(", ")}`);
}

function show() {
  const chosen = choice();
  $("question").textContent = `"${chosen.scene.question} ..."`;
  $("edit-title").textContent = `${chosen.number}: ${chosen.edit.title}`;
  $("slot-said").textContent = depth(chosen.slot, chosen.model.layers);
  $("slot").setAttribute("aria-valuetext", depth(chosen.slot, chosen.model.layers));
  for (const part of [showPictures, showAnswers, showPredicted, showCurve]) part(chosen);
}

$("model").replaceChildren(...DATA.models.map(({ name }) => html("option", {}, name)));
radios("edits", "edit", Object.entries(DATA.edits).map(([number, { title }]) => [number, `${number}: ${title}`]),
  (number) => html("span", {}, number), FIRST);
offerScenes();
document.querySelector("form").addEventListener("input", (event) => {
  if (event.target.id === "model") offerScenes();
  show();
});
document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
show();
