// The HTML edition in a browser: every page at the width of a phone and of a desk, no dead link, nothing fetched from
// outside; and the page of the nine edits, driven by keyboard.

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const WIDTHS = [360, 1280];

export async function lookAtSite(context, python, root, work, shots) {
  const site = path.join(work, "site");
  const made = spawnSync(python, ["-m", "lib.artifact.site", site], { cwd: root, encoding: "utf8" });
  if (made.status !== 0) throw new Error(made.stderr);
  const page = await context.newPage();
  const outside = [], problems = [];
  await page.route(/^https?:/, (route) => { outside.push(route.request().url()); return route.abort(); });
  page.on("pageerror", (error) => problems.push(String(error)));
  const pages = fs.readdirSync(site, { recursive: true }).filter((name) => name.endsWith(".html")).sort();
  let links = 0;
  for (const name of pages)
    for (const width of WIDTHS) {
      await page.setViewportSize({ width, height: 900 });
      await page.goto(pathToFileURL(path.join(site, name)).href);
      links += await lookAtPage(page, `${name} at ${width}`, width, problems);
      const shot = `site-${width}-${name.replaceAll(path.sep, "-").replace(".html", "")}.png`;
      await page.screenshot({ path: path.join(shots, shot), fullPage: true });
    }
  const tried = pages.includes("edits.html") ? await tryEdits(page, path.join(site, "edits.html")) : 0;
  if (!tried) problems.push("the page of the nine edits is not there");
  await page.close();
  if (outside.length) problems.push(`asks for ${outside[0]}`);
  if (problems.length) throw new Error(problems.join("; "));
  return `${pages.length} pages at ${WIDTHS} pixels, ${links} links and pictures, ${tried} answers of the nine edits, ` +
    "nothing fetched from outside";
}

// Pictures load, links lead somewhere, nothing sticks out at the side; returns the number of links and pictures.
async function lookAtPage(page, name, width, problems) {
  await page.$$eval("img", (all) => all.forEach((img) => { img.loading = "eager"; }));
  await page.waitForFunction(() => [...document.images].every((img) => img.complete && img.naturalWidth > 0));
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  if (wide > width) problems.push(`${name} is ${wide} pixels wide`);
  const links = await page.$$eval("a[href], img[src]", (all) => all.map((each) => each.href || each.src));
  for (const link of links.filter((link) => link.startsWith("file:")))
    if (!fs.existsSync(fileURLToPath(link.split("#")[0]))) problems.push(`${name}: no such file: ${link}`);
  return links.length;
}

// The nine edits -----------------------------------------------------------------------------------------------------

const swing = ([target, opposite]) => opposite - target;
const effect = (scene, answers) =>
  (swing(answers) - swing(scene.before)) / (swing(scene.other) - swing(scene.before));

const state = (page) => page.evaluate(() => ({
  model: document.getElementById("model").value,
  scene: Number(document.querySelector("input[name=scene]:checked").value),
  edit: document.querySelector("input[name=edit]:checked").value,
  slot: Number(document.getElementById("slot").value),
  said: document.getElementById("said").textContent,
  bars: [...document.querySelectorAll("#answers tbody tr")].map((row) => row.cells[2].textContent),
  marked: document.querySelectorAll("#into rect").length,
}));

// What the page shows must follow from the answers that stand in it.
function compare(seen, data) {
  const model = data.models.find(({ name }) => name === seen.model);
  const scene = model.scenes[seen.scene];
  const answers = scene.after[seen.edit][seen.slot];
  const shown = Number(/effect (-?[\d.]+)/.exec(seen.said)[1]);
  const where = JSON.stringify(seen);
  if (Math.abs(shown - effect(scene, answers)) > 0.0051) throw new Error(`${where}: not the effect of these answers`);
  if (seen.bars.slice(0, 3).some((text, k) => Math.abs(Number(text) - answers[k]) > 0.0051))
    throw new Error(`${where}: not these answers`);
  if (seen.marked !== scene.edits[seen.edit].targets.length) throw new Error(`${where}: other tokens are marked`);
}

async function tryEdits(page, file) {
  await page.goto(pathToFileURL(file).href);
  const data = JSON.parse(await page.locator("#data").textContent());
  const seen = [];
  const press = async (key) => {
    await page.keyboard.press(key);
    seen.push(await state(page));
    compare(seen.at(-1), data);
  };
  // Tab goes through the controls in order, the keys of each control change it, and every choice is shown
  await page.locator("#model").focus();
  for (const each of data.models.slice(1)) {
    await page.locator("#model").selectOption(each.name);
    seen.push(await state(page));
    compare(seen.at(-1), data);
  }
  await page.keyboard.press("Tab");
  for (const _ of data.models[0].scenes) await press("ArrowRight");
  await page.keyboard.press("Tab");
  for (const _ of Object.keys(data.edits)) await press("ArrowRight");
  await page.keyboard.press("Tab");
  for (const _ of data.models[0].scenes[0].after[1].slice(1)) await press("ArrowRight");
  if (seen.at(-1).slot !== data.models.at(-1).layers) throw new Error("the slot does not reach the last one by keyboard");
  await press("Home");
  for (const name of ["scene", "edit", "slot", "model"])
    if (new Set(seen.map((each) => each[name])).size < 2) throw new Error(`${name} does not change by keyboard`);
  return seen.length;
}
