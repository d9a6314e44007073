const find = (selector) => element.querySelector(selector);
const mapCanvas = find("canvas.map"), marksCanvas = find("canvas.marks");
const FIRST_NODULE = 5, LUNG = 4, HISTORY = 40;
const colourOf = (label) => "rgb(" + props.labels[label].colour.join(",") + ")";

let height = 0, width = 0, markScale = 1;
let labels = null; // Uint8Array of the map
let beneath = null; // what the eraser brings back: the map as it was loaded, lung in place of its nodules
let nodules = []; // {label, pixels, yx, features} in raster order of the first pixel, as find_nodules of the server
let past = [], future = [];
let tool = "nodule", brushLabel = LUNG, pixelSpacing = 0.7;
let pointer = null; // where the mouse is, in pixels of the map
let stamps = 0; // each stamped nodule has an outline of its own

// ---- the map and its nodules

function noduleComponents() {
  const seen = new Uint8Array(labels.length), found = [];
  for (let start = 0; start < labels.length; start++) {
    if (labels[start] < FIRST_NODULE || seen[start]) continue;
    const pixels = [start];
    seen[start] = 1;
    for (let next = 0; next < pixels.length; next++) {
      const x = pixels[next] % width, y = (pixels[next] - x) / width;
      for (let ny = Math.max(0, y - 1); ny <= Math.min(height - 1, y + 1); ny++) {
        for (let nx = Math.max(0, x - 1); nx <= Math.min(width - 1, x + 1); nx++) {
          const neighbour = ny * width + nx;
          if (!seen[neighbour] && labels[neighbour] === labels[start]) {
            seen[neighbour] = 1;
            pixels.push(neighbour);
          }
        }
      }
    }
    let sumY = 0, sumX = 0;
    for (const pixel of pixels) {
      sumX += pixel % width;
      sumY += Math.floor(pixel / width);
    }
    found.push({ label: labels[start], pixels: pixels, yx: [sumY / pixels.length, sumX / pixels.length] });
  }
  return found;
}

function initialFeatures(label) {
  const malignancy = { 5: "benign", 7: "malignant" }[label] || null;
  const features = { malignancy: malignancy };
  for (const feature of props.features) features[feature] = null;
  return features;
}

function updateNodules() {
  const owner = new Map();
  nodules.forEach((nodule) => nodule.pixels.forEach((pixel) => owner.set(pixel, nodule)));
  const taken = new Set();
  const current = noduleComponents();
  for (const nodule of current) {
    const before = nodule.pixels.map((pixel) => owner.get(pixel)).find((old) => old && old.label === nodule.label && !taken.has(old));
    if (before) taken.add(before);
    nodule.features = before ? before.features : initialFeatures(nodule.label);
  }
  nodules = current;
}

async function publish() {
  const drawn = labels;
  const packed = await packArray(drawn, "uint8", [height, width]);
  if (drawn !== labels) return; // another change came meanwhile, and publishes itself
  props.value = { map: packed, pixel_spacing: pixelSpacing, features: nodules.map((nodule) => nodule.features) };
}

function changed() {
  updateNodules();
  drawMap();
  drawMarks();
  showNodules();
  showHistory();
  publish();
}

function remember() {
  past.push({ labels: labels, nodules: nodules });
  if (past.length > HISTORY) past.shift();
  future = [];
  labels = labels.slice();
}

function travel(from, to) {
  if (!from.length) return;
  to.push({ labels: labels, nodules: nodules });
  const state = from.pop();
  labels = state.labels;
  nodules = state.nodules;
  changed();
}

async function load(packed, spacing, title) {
  labels = await unpackArray(packed);
  height = packed.shape[0];
  width = packed.shape[1];
  beneath = labels.map((label) => (label >= FIRST_NODULE ? LUNG : label));
  pixelSpacing = spacing;
  past = [];
  future = [];
  nodules = [];
  mapCanvas.width = width;
  mapCanvas.height = height;
  markScale = 1024 / width; // numbers and outlines stay sharp on a small map
  marksCanvas.width = 1024;
  marksCanvas.height = height * markScale;
  find(".frame").style.aspectRatio = width + " / " + height;
  find(".pixel-spacing").value = Math.round(spacing * 1000) / 1000;
  element.querySelectorAll(".examples button").forEach((button) => button.classList.toggle("chosen", button.dataset.title === title));
  changed();
}

// ---- drawing

function paintMap(canvas, mapLabels, mapWidth, mapHeight) {
  const image = new ImageData(mapWidth, mapHeight);
  for (let i = 0; i < mapLabels.length; i++) {
    const colour = props.labels[mapLabels[i]].colour;
    image.data[4 * i] = colour[0];
    image.data[4 * i + 1] = colour[1];
    image.data[4 * i + 2] = colour[2];
    image.data[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const drawMap = () => paintMap(mapCanvas, labels, width, height);

function drawMarks() {
  const context = marksCanvas.getContext("2d");
  context.setTransform(markScale, 0, 0, markScale, 0, 0);
  context.clearRect(0, 0, width, height);
  const unit = width / 512;
  context.font = "600 " + 15 * unit + "px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  nodules.forEach((nodule, index) => {
    const radius = Math.sqrt(nodule.pixels.length / Math.PI);
    const x = nodule.yx[1] + radius + 14 * unit, y = nodule.yx[0] - radius - 8 * unit;
    context.fillStyle = "rgba(15, 23, 42, 0.85)";
    context.beginPath();
    context.arc(x, y, 11 * unit, 0, 7);
    context.fill();
    context.fillStyle = "white";
    context.fillText(String(index + 1), x, y + unit);
  });
  if (!pointer) return;
  const radius = tool === "nodule" ? diameter() / pixelSpacing / 2 : brushSize() / 2;
  context.lineWidth = 1.5 * unit;
  for (const [style, grow] of [["rgba(0,0,0,0.7)", unit], ["white", 0]]) {
    context.strokeStyle = style;
    context.beginPath();
    context.arc(pointer.x, pointer.y, Math.max(0.5, radius) + grow, 0, 7);
    context.stroke();
  }
}

function paintDisc(cx, cy) {
  const radius = brushSize() / 2;
  for (let y = Math.max(0, Math.ceil(cy - radius)); y <= Math.min(height - 1, cy + radius); y++) {
    for (let x = Math.max(0, Math.ceil(cx - radius)); x <= Math.min(width - 1, cx + radius); x++) {
      if ((x - cx) ** 2 + (y - cy) ** 2 <= radius ** 2 + 0.25) {
        labels[y * width + x] = tool === "eraser" ? beneath[y * width + x] : brushLabel;
      }
    }
  }
}

function paintLine(from, to) {
  const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / Math.max(1, brushSize() / 4)));
  for (let step = 0; step <= steps; step++) {
    paintDisc(from.x + ((to.x - from.x) * step) / steps, from.y + ((to.y - from.y) * step) / steps);
  }
  drawMap();
}

async function placeNodule(point) {
  say("");
  const drawn = labels;
  const answer = await server.stamp({
    map: await packArray(labels, "uint8", [height, width]),
    y: point.y, x: point.x, diameter_mm: diameter(), pixel_spacing: pixelSpacing,
    shape: find(".shape").value, malignancy: find(".malignancy").value, seed: stamps,
  }).catch(() => ({ error: "The server did not answer." }));
  if (answer.error) return say(answer.error, true);
  if (drawn !== labels) return; // drawn on meanwhile
  remember();
  stamps += 1;
  labels = await unpackArray(answer.map);
  changed();
}

// ---- controls

const diameter = () => Number(find(".diameter").value);
const brushSize = () => Number(find(".brush-size").value);

function say(text, isError) {
  find(".message").textContent = text;
  find(".message").classList.toggle("error", Boolean(isError));
}

function chooseTool(name) {
  tool = name;
  element.querySelectorAll("[data-tool]").forEach((button) => button.setAttribute("aria-checked", String(button.dataset.tool === name)));
  element.querySelectorAll(".options").forEach((options) => {
    options.hidden = (options.dataset.for === "nodule") !== (name === "nodule");
  });
  element.querySelectorAll(".legend button").forEach((button) => {
    button.setAttribute("aria-checked", String(name === "brush" && Number(button.dataset.label) === brushLabel));
  });
  marksCanvas.style.touchAction = name === "nodule" ? "manipulation" : "none";
}

function showValues() {
  find(".diameter-shown").textContent = diameter() + " mm";
  find(".brush-shown").textContent = brushSize() + " px";
}

function showHistory() {
  find("[data-action=undo]").disabled = !past.length;
  find("[data-action=redo]").disabled = !future.length;
}

function make(tag, attributes, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

function noduleCard(nodule, index) {
  const millimetres = 2 * Math.sqrt(nodule.pixels.length / Math.PI) * pixelSpacing;
  const malignancy = make("div", { className: "segments" });
  malignancy.setAttribute("role", "radiogroup");
  malignancy.setAttribute("aria-label", "Malignancy of nodule " + (index + 1));
  for (const [value, text] of [[null, "unguided"], ["benign", "benign"], ["malignant", "malignant"]]) {
    const button = make("button", { type: "button", textContent: text });
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", String(nodule.features.malignancy === value));
    button.onclick = () => setFeature(nodule, "malignancy", value);
    malignancy.append(button);
  }
  const sliders = props.features.map((feature) => {
    const value = nodule.features[feature];
    const slider = make("input", { type: "range", min: 0, max: 5, step: 1, value: value || 0 });
    const shown = make("output", { textContent: value || "free" });
    slider.oninput = () => (shown.textContent = Number(slider.value) || "free");
    slider.onchange = () => setFeature(nodule, feature, Number(slider.value) || null);
    slider.setAttribute("aria-label", feature + " of nodule " + (index + 1));
    return make("label", { className: "range" }, feature, slider, shown);
  });
  const remove = make("button", { type: "button", className: "plain", textContent: "Remove" });
  remove.onclick = () => {
    remember();
    for (const pixel of nodule.pixels) labels[pixel] = beneath[pixel] >= FIRST_NODULE ? LUNG : beneath[pixel];
    changed();
  };
  const dot = make("span", { className: "dot" });
  dot.style.background = colourOf(nodule.label);
  const title = make("strong", {}, "Nodule " + (index + 1));
  const size = make("span", { className: "size", textContent: millimetres.toFixed(0) + " mm" });
  return make("section", { className: "nodule" }, make("header", {}, dot, title, size, remove), malignancy, ...sliders);
}

function setFeature(nodule, feature, value) {
  nodule.features = { ...nodule.features, [feature]: value };
  showNodules();
  publish();
}

function showNodules() {
  const list = find(".nodules");
  if (!nodules.length) {
    list.replaceChildren(make("p", { className: "hint", textContent: "No nodule yet: click on a lung to place one." }));
    return;
  }
  list.replaceChildren(...nodules.map(noduleCard));
}

// ---- events

function position(event) {
  const box = marksCanvas.getBoundingClientRect();
  return { x: ((event.clientX - box.left) / box.width) * width - 0.5, y: ((event.clientY - box.top) / box.height) * height - 0.5 };
}

let last = null; // the pointer's last point while it draws
marksCanvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || tool === "nodule") return;
  event.preventDefault();
  marksCanvas.setPointerCapture(event.pointerId);
  say("");
  remember();
  last = position(event);
  paintLine(last, last);
});
marksCanvas.addEventListener("pointermove", (event) => {
  pointer = event.pointerType === "mouse" ? position(event) : null;
  if (last) {
    const point = position(event);
    paintLine(last, point);
    last = point;
  }
  drawMarks();
});
for (const type of ["pointerup", "pointercancel"]) {
  marksCanvas.addEventListener(type, () => {
    if (!last) return;
    last = null;
    changed();
  });
}
marksCanvas.addEventListener("pointerleave", () => {
  pointer = null;
  drawMarks();
});
marksCanvas.addEventListener("click", (event) => {
  if (tool === "nodule") placeNodule(position(event));
});
element.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || event.target.matches("input[type=number]")) return;
  const key = event.key.toLowerCase();
  if (key === "z" && !event.shiftKey) travel(past, future);
  else if (key === "y" || (key === "z" && event.shiftKey)) travel(future, past);
  else return;
  event.preventDefault();
});
find("[data-action=undo]").onclick = () => travel(past, future);
find("[data-action=redo]").onclick = () => travel(future, past);
element.querySelectorAll("[data-tool]").forEach((button) => (button.onclick = () => chooseTool(button.dataset.tool)));
element.querySelectorAll("input[type=range]").forEach((slider) => slider.addEventListener("input", showValues));
find(".pixel-spacing").onchange = (event) => {
  const value = Number(event.target.value);
  if (!(value >= 0.1 && value <= 5)) {
    event.target.value = pixelSpacing;
    return say("The edge of a pixel of chest CT is 0.1 to 5 mm.", true);
  }
  pixelSpacing = value;
  changed();
};
find(".upload-button").onkeydown = (event) => {
  if (event.key === "Enter" || event.key === " ") find("input[type=file]").click();
};
find("input[type=file]").onchange = async (event) => {
  const file = event.target.files[0];
  event.target.value = "";
  if (!file) return;
  if (file.size > props.maxUpload) {
    return say("The file has " + (file.size / 2 ** 20).toFixed(0) + " MiB, but at most " + props.maxUpload / 2 ** 20 + " MiB are accepted.", true);
  }
  say("Reading " + file.name + " ...");
  const data = await new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.readAsDataURL(file);
  });
  const answer = await server.read_upload({ name: file.name, data: data }).catch(() => ({ error: "The server did not answer." }));
  if (answer.error) return say(answer.error, true);
  await load(answer.map, answer.pixel_spacing, null);
  say(answer.message);
};

// ---- start

props.labels.forEach((label, index) => {
  const swatch = make("span", { className: "swatch" });
  swatch.style.background = colourOf(index);
  const button = make("button", { type: "button", title: "Draw " + label.name }, swatch, label.name);
  button.setAttribute("role", "radio");
  button.dataset.label = index;
  button.onclick = () => {
    brushLabel = index;
    chooseTool("brush");
  };
  find(".legend").append(button);
});
props.shapes.forEach((shape) => find(".shape").append(make("option", { value: shape, textContent: shape })));
Object.assign(find(".diameter"), { min: props.diameters[0], max: props.diameters[1], value: 14 });
props.examples.forEach(async (example) => {
  const canvas = make("canvas", { width: example.map.shape[1], height: example.map.shape[0] });
  const button = make("button", { type: "button", title: example.title }, canvas, make("span", { textContent: example.title.split(",")[0] }));
  button.dataset.title = example.title;
  button.onclick = () => {
    say("");
    load(example.map, example.pixel_spacing, example.title);
  };
  find(".examples").append(button);
  paintMap(canvas, await unpackArray(example.map), canvas.width, canvas.height);
});
showValues();
chooseTool("nodule");
load(props.value.map, props.value.pixel_spacing, props.examples[0].title);
