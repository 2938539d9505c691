// Opens every notebook in JupyterLab as `make lab` serves it, runs all cells, and looks at the result; then opens the
// HTML edition. Works on copies: notebooks/ and outputs/ stay as they are. Screenshots go to the folder given.
//
//   node run.mjs PYTHON SCREENSHOTS [NOTEBOOK ...]        (notebooks by number, such as 01; none: all; `site`: only the
//                                                          HTML edition)
//
// Exit codes: 0 all well, 1 something failed, 2 something needed is missing.

import { spawn, spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import fs from "node:fs";
import net from "node:net";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { lookAtSite } from "./site.mjs";

const ROOT = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");
const MINUTES = Number(process.env.BROWSER_MINUTES ?? 15); // for one notebook; a busy machine takes long
const BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
  "--disable-background-networking", "--disable-component-update"];

function missing(sentence) {
  console.error(`error: ${sentence}`);
  process.exit(2);
}

function browserPath() {
  const folders = process.env.PATH.split(path.delimiter);
  const named = process.env.CHROMIUM ? [process.env.CHROMIUM] : [];
  const found = [...named, ...BROWSERS.flatMap((name) => folders.map((folder) => path.join(folder, name)))];
  return found.find((file) => fs.existsSync(file)) ??
    missing("Chromium or Chrome is needed (Debian: apt-get install chromium), or its path in CHROMIUM");
}

// Whatever is seen in a page later was made there.
function copyWithoutOutputs(from, to) {
  fs.cpSync(from, to, { recursive: true });
  for (const name of fs.readdirSync(to).filter((name) => name.endsWith(".ipynb"))) {
    const book = JSON.parse(fs.readFileSync(path.join(to, name)));
    for (const cell of book.cells.filter((cell) => cell.cell_type === "code"))
      Object.assign(cell, { outputs: [], execution_count: null });
    fs.writeFileSync(path.join(to, name), JSON.stringify(book));
  }
}

const digest = (file) => createHash("sha256").update(fs.readFileSync(file)).digest("hex");

const freePort = () => new Promise((resolve) => {
  const server = net.createServer().listen(0, "127.0.0.1", () => {
    const { port } = server.address();
    server.close(() => resolve(port));
  });
});

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// JupyterLab ---------------------------------------------------------------------------------------------------------

function settings(folder) {
  const write = (name, value) => {
    const file = path.join(folder, `${name}.jupyterlab-settings`);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, JSON.stringify(value));
  };
  write("@jupyterlab/apputils-extension/notification", { fetchNews: "false", checkForUpdates: false });
  write("@jupyterlab/notebook-extension/tracker", { windowingMode: "none" }); // every cell is in the page
}

async function startLab(python, work) {
  const port = await freePort();
  const token = randomBytes(16).toString("hex");
  settings(path.join(work, "settings"));
  const env = { ...process.env, DUAL_OUTPUTS: path.join(work, "outputs"), TQDM_DISABLE: "1",
    PYTHONPATH: [ROOT, process.env.PYTHONPATH].filter(Boolean).join(path.delimiter),
    JUPYTER_CONFIG_DIR: path.join(work, "config"), JUPYTER_RUNTIME_DIR: path.join(work, "runtime"),
    JUPYTERLAB_SETTINGS_DIR: path.join(work, "settings"), JUPYTERLAB_WORKSPACES_DIR: path.join(work, "workspaces") };
  const words = ["-m", "jupyter", "lab", path.join(work, "notebooks"), "--no-browser", "--allow-root", `--port=${port}`,
    "--ServerApp.port_retries=0", `--IdentityProvider.token=${token}`];
  const log = fs.openSync(path.join(work, "lab.log"), "w");
  const lab = spawn(python, words, { env, stdio: ["ignore", log, log], detached: true });
  const address = `http://127.0.0.1:${port}`;
  for (let tries = 0; tries < 240; tries++) {
    if (lab.exitCode !== null) break;
    const answer = await fetch(`${address}/api/status?token=${token}`).catch(() => null);
    if (answer?.ok) return { lab, address, token };
    await pause(0.5);
  }
  throw new Error(`JupyterLab did not start: ${fs.readFileSync(path.join(work, "lab.log"), "utf8").slice(-2000)}`);
}

// What the page shows, read in the page.
function look() {
  const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map((prompt) => prompt.innerText.trim());
  const errors = [...document.querySelectorAll(
    '.jp-OutputArea-output[data-mime-type$="jupyter.error"], .jp-OutputArea-output[data-mime-type$="jupyter.stderr"]',
  )].map((output) => output.innerText.trim());
  const pictures = [...document.querySelectorAll(".jp-OutputArea-output img")]
    .filter((img) => img.complete && img.naturalWidth > 50 && img.getBoundingClientRect().height > 20);
  return { prompts, errors, pictures: pictures.length };
}

// Run > Run All Cells; asked before the kernel is connected, JupyterLab does nothing, and so it is asked again.
async function runAll(page) {
  for (let tries = 0; tries < 10; tries++) {
    await page.getByRole("menuitem", { name: "Run", exact: true }).click();
    await page.locator('.lm-Menu [data-command="runmenu:run-all"]').click({ delay: 100 });
    for (let seconds = 0; seconds < 10; seconds++, await pause(1))
      if ((await page.evaluate(look)).prompts.some((prompt) => prompt !== "[ ]:")) return;
  }
  throw new Error("no cell starts to run");
}

async function runNotebook(context, { address, token }, file, shots) {
  const page = await context.newPage();
  const started = Date.now();
  try {
    await page.goto(`${address}/lab/tree/${path.basename(file)}?reset&token=${token}`);
    await page.locator(".jp-Notebook .jp-CodeCell").first().waitFor({ timeout: 120_000 });
    await page.getByText(/^Python 3.*\| Idle$/).first().waitFor({ timeout: 120_000 });
    await runAll(page);
    let seen;
    do {
      await pause(1);
      seen = await page.evaluate(look);
      if (seen.errors.length) throw new Error(seen.errors[0]);
      if (Date.now() - started > MINUTES * 60_000) throw new Error(`not finished after ${MINUTES} minutes: ${seen.prompts}`);
    } while (!seen.prompts.every((prompt) => /^\[\d+\]:$/.test(prompt)));
    await pause(1); // pictures of the last cell
    seen = await page.evaluate(look);
    const cells = JSON.parse(fs.readFileSync(file)).cells.filter((cell) => cell.cell_type === "code");
    const figures = cells.filter((cell) => [cell.source].flat().join("").includes("figures.save(")).length;
    if (seen.pictures < figures) throw new Error(`${seen.pictures} pictures visible, ${figures} cells draw figures`);
    await tall(page, path.join(shots, `lab-${path.basename(file, ".ipynb")}.png`));
    const seconds = Math.round((Date.now() - started) / 1000);
    return `${seen.prompts.length} cells, ${seen.pictures} pictures, ${seconds} s`;
  } catch (error) {
    await page.screenshot({ path: path.join(shots, `failed-${path.basename(file, ".ipynb")}.png`) });
    throw error;
  } finally {
    await page.close();
  }
}

// A screenshot with the window as high as the notebook that scrolls in it.
async function tall(page, file) {
  const height = await page.evaluate(() => document.querySelector(".jp-WindowedPanel-outer")?.scrollHeight ?? 1000);
  await page.setViewportSize({ width: 1400, height: Math.min(15000, height + 200) });
  await page.evaluate(() => document.querySelector(".jp-WindowedPanel-outer")?.scrollTo(0, 0)); // Run All went to the end
  await pause(1);
  await page.screenshot({ path: file });
}

// --------------------------------------------------------------------------------------------------------------------

const [python, shots, ...numbers] = process.argv.slice(2);
if (!shots) missing("call it as node run.mjs PYTHON SCREENSHOTS [NOTEBOOK ...], or by make test-browser");
const executablePath = browserPath();
const { chromium } = await import("playwright-core").catch(() =>
  missing("playwright-core is needed: npm ci --prefix tests/browser"));
const notebooks = path.join(ROOT, "notebooks");
const work = fs.mkdtempSync(path.join(os.tmpdir(), "browser-"));
fs.mkdirSync(shots, { recursive: true });
copyWithoutOutputs(notebooks, path.join(work, "notebooks"));
let context, served, failed = 0;

const stopLab = () => { // the server and its kernels are one group of processes
  if (served?.lab.exitCode === null) try { process.kill(-served.lab.pid, "SIGTERM"); } catch { /* gone already */ }
};
process.on("exit", stopLab);
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => process.exit(130));

async function check(name, what) {
  try {
    console.log(`ok      ${name}: ${await what()}`);
  } catch (error) {
    failed++;
    console.log(`FAILED  ${name}: ${error.message}`);
  }
}

async function openNotebooks() {
  const files = fs.readdirSync(path.join(work, "notebooks")).filter((name) => /^\d.*(?<!\.failed)\.ipynb$/.test(name))
    .filter((name) => !numbers.length || numbers.some((number) => name.startsWith(number))).sort();
  if (!files.length) missing(`no notebook is called ${numbers.join(" or ")}`);
  const before = Object.fromEntries(files.map((name) => [name, digest(path.join(notebooks, name))]));
  served = await startLab(python, work);
  for (const name of files)
    await check(name, () => runNotebook(context, served, path.join(work, "notebooks", name), shots));
  await check("sources untouched", async () => {
    const changed = files.filter((name) => digest(path.join(notebooks, name)) !== before[name]);
    if (changed.length) throw new Error(`${changed.join(", ")} changed in notebooks/ meanwhile`);
    return "notebooks/ is as it was";
  });
}

try {
  context = await chromium.launchPersistentContext(path.join(work, "user"), {
    executablePath, headless: true, args: FLAGS, viewport: { width: 1400, height: 1000 } });
  await check("HTML edition", () => lookAtSite(context, python, ROOT, work, shots));
  if (!numbers.includes("site")) await openNotebooks();
} catch (error) {
  failed++;
  console.log(`FAILED  ${error.message}`);
} finally {
  await context?.close();
  stopLab();
  await pause(1);
  fs.rmSync(work, { recursive: true, force: true, maxRetries: 5 });
}
console.log(`screenshots are in ${shots}`);
process.exit(failed ? 1 : 0);
