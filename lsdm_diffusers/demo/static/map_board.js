// The board: draws the map, numbers its nodules, and publishes both as `props.value`. The properties come from
// map_board.py. Runs after component.js and packed_array.js.

const mapCanvas = find("canvas.map"), marksCanvas = find("canvas.marks");
const UNDO_STEPS = 40;
const MARKS_WIDTH = 1024; // pixels of the canvas of the marks: numbers and outlines stay sharp on a small map
const REFERENCE_WIDTH = 512; // the sizes of marks are given for a map of this many pixels
const START_DIAMETER = 14; // mm
const colourOf = (label) => "rgb(" + props.labels[label].colour.join(",") + ")";
const isNodule = (label) => label >= props.firstNoduleLabel;

let height = 0, width = 0, markScale = 1;
let labels = null; // Uint8Array of the map
let baseLabels = null; // what the eraser brings back: the loaded map, with lung in place of its nodules
let nodules = []; // {label, pixels, yx, features} by their first pixel in raster order, as find_nodules of the server
let undoStates = [], redoStates = [];
let pixelSpacing = null; // edge of a pixel in mm
let tool = "nodule", brushLabel = props.lungLabel;
let pointer = null; // where the mouse is, in pixels of the map
let stampCount = 0; // the seed of the next nodule, so that each has an outline of its own

// ---- the map and its nodules

function noduleComponents() {
  const seen = new Uint8Array(labels.length), components = [];
  for (let start = 0; start < labels.length; start++) {
    if (!isNodule(labels[start]) || seen[start]) continue;
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
    components.push({ label: labels[start], pixels: pixels, yx: [sumY / pixels.length, sumX / pixels.length] });
  }
  return components;
}

function initialFeatures(label) {
  const features = { malignancy: props.malignancyOfLabel[label] || null };
  for (const feature of props.ratedFeatures) features[feature] = null;
  return features;
}

// find the nodules of the drawn map; one that shares pixels with an earlier one keeps its features
function updateNodules() {
  const earlierByPixel = new Map();
  nodules.forEach((nodule) => nodule.pixels.forEach((pixel) => earlierByPixel.set(pixel, nodule)));
  const matched = new Set();
  const current = noduleComponents();
  for (const nodule of current) {
    const candidates = nodule.pixels.map((pixel) => earlierByPixel.get(pixel));
    const earlier = candidates.find((old) => old && old.label === nodule.label && !matched.has(old));
    if (earlier) matched.add(earlier);
    nodule.features = earlier ? earlier.features : initialFeatures(nodule.label);
  }
  nodules = current;
}

// the same for the same map, so that the viewer knows slices of an earlier one
function mapKey() {
  let hash = 0;
  for (const label of labels) hash = (Math.imul(hash, 31) + label) | 0;
  return [height, width, pixelSpacing, hash].join("/");
}

async function publish() {
  const published = labels;
  const key = mapKey();
  document.dispatchEvent(new CustomEvent("board-map", { detail: key }));
  const packed = await packArray(published, "uint8", [height, width]);
  if (published !== labels) return; // the map has changed meanwhile, and that change is published by itself
  const features = nodules.map((nodule) => nodule.features);
  props.value = { map: packed, key: key, pixel_spacing: pixelSpacing, features: features };
}

function mapChanged() {
  updateNodules();
  drawMap();
  drawMarks();
  showNodules();
  showUndoButtons();
  publish();
}

// keep the state for undo, before the map is changed
function saveForUndo() {
  undoStates.push({ labels: labels, nodules: nodules });
  if (undoStates.length > UNDO_STEPS) undoStates.shift();
  redoStates = [];
  labels = labels.slice();
}

// go to the last of the states `from`, and keep the present one in `to`
function restoreState(from, to) {
  if (!from.length) return;
  to.push({ labels: labels, nodules: nodules });
  const state = from.pop();
  labels = state.labels;
  nodules = state.nodules;
  mapChanged();
}

const undo = () => restoreState(undoStates, redoStates);
const redo = () => restoreState(redoStates, undoStates);

async function loadMap(packed, spacing, title) {
  labels = await unpackArray(packed);
  height = packed.shape[0];
  width = packed.shape[1];
  baseLabels = labels.map((label) => (isNodule(label) ? props.lungLabel : label));
  pixelSpacing = spacing;
  undoStates = [];
  redoStates = [];
  nodules = [];
  mapCanvas.width = width;
  mapCanvas.height = height;
  markScale = MARKS_WIDTH / width;
  marksCanvas.width = MARKS_WIDTH;
  marksCanvas.height = height * markScale;
  find(".frame").style.aspectRatio = width + " / " + height;
  find(".pixel-spacing").value = Math.round(spacing * 1000) / 1000;
  findAll(".examples button").forEach((button) => button.classList.toggle("chosen", button.dataset.title === title));
  mapChanged();
}

// ---- drawing

function paintMap(canvas, mapLabels, mapWidth, mapHeight) {
  const image = new ImageData(mapWidth, mapHeight);
  for (let i = 0; i < mapLabels.length; i++) {
    const colour = props.labels[mapLabels[i]].colour;
    image.data.set([colour[0], colour[1], colour[2], 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

const drawMap = () => paintMap(mapCanvas, labels, width, height);

function drawMarks() {
  const context = marksCanvas.getContext("2d");
  context.setTransform(markScale, 0, 0, markScale, 0, 0);
  context.clearRect(0, 0, width, height);
  const unit = width / REFERENCE_WIDTH;
  context.font = "600 " + 15 * unit + "px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  nodules.forEach((nodule, index) => {
    const radius = Math.sqrt(nodule.pixels.length / Math.PI);
    const x = nodule.yx[1] + radius + 14 * unit, y = nodule.yx[0] - radius - 8 * unit;
    context.fillStyle = "rgba(15, 23, 42, 0.85)";
    context.beginPath();
    context.arc(x, y, 11 * unit, 0, 2 * Math.PI);
    context.fill();
    context.fillStyle = "white";
    context.fillText(String(index + 1), x, y + unit);
  });
  if (!pointer) return;
  const radius = tool === "nodule" ? diameter() / pixelSpacing / 2 : brushSize() / 2;
  context.lineWidth = 1.5 * unit;
  for (const [style, wider] of [["rgba(0,0,0,0.7)", unit], ["white", 0]]) {
    context.strokeStyle = style;
    context.beginPath();
    context.arc(pointer.x, pointer.y, Math.max(0.5, radius) + wider, 0, 2 * Math.PI);
    context.stroke();
  }
}

function paintDisc(cx, cy) {
  const radius = brushSize() / 2;
  for (let y = Math.max(0, Math.ceil(cy - radius)); y <= Math.min(height - 1, cy + radius); y++) {
    for (let x = Math.max(0, Math.ceil(cx - radius)); x <= Math.min(width - 1, cx + radius); x++) {
      // a quarter more, so that a brush of one pixel paints one
      if ((x - cx) ** 2 + (y - cy) ** 2 > radius ** 2 + 0.25) continue;
      const pixel = y * width + x;
      labels[pixel] = tool === "eraser" ? baseLabels[pixel] : brushLabel;
    }
  }
}

function paintLine(from, to) {
  const step = Math.max(1, brushSize() / 4); // close enough for an even line
  const count = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / step));
  for (let i = 0; i <= count; i++) {
    paintDisc(from.x + ((to.x - from.x) * i) / count, from.y + ((to.y - from.y) * i) / count);
  }
  drawMap();
}

async function placeNodule(point) {
  showMessage("");
  const mapBefore = labels;
  const answer = await ask(server.stamp, {
    map: await packArray(labels, "uint8", [height, width]),
    y: point.y, x: point.x, diameter_mm: diameter(), pixel_spacing: pixelSpacing,
    shape: find(".shape").value, malignancy: find(".malignancy").value, seed: stampCount,
  });
  if (answer.error) return showMessage(answer.error, true);
  if (mapBefore !== labels) return; // the map was drawn on meanwhile
  saveForUndo();
  stampCount += 1;
  labels = await unpackArray(answer.map);
  mapChanged();
}

// ---- controls

const diameter = () => Number(find(".diameter").value);
const brushSize = () => Number(find(".brush-size").value);

function showMessage(text, isError) {
  find(".message").textContent = text;
  find(".message").classList.toggle("error", Boolean(isError));
}

const setChecked = (button, checked) => button.setAttribute("aria-checked", String(checked));

function chooseTool(name) {
  tool = name;
  findAll("[data-tool]").forEach((button) => setChecked(button, button.dataset.tool === name));
  findAll(".options").forEach((options) => {
    options.hidden = (options.dataset.for === "nodule") !== (name === "nodule");
  });
  findAll(".legend button").forEach((button) => {
    setChecked(button, name === "brush" && Number(button.dataset.label) === brushLabel);
  });
  marksCanvas.style.touchAction = name === "nodule" ? "manipulation" : "none";
}

function showValues() {
  find(".diameter-shown").textContent = diameter() + " mm";
  find(".brush-shown").textContent = brushSize() + " px";
}

function showUndoButtons() {
  find("[data-action=undo]").disabled = !undoStates.length;
  find("[data-action=redo]").disabled = !redoStates.length;
}

function malignancyButtons(nodule, number) {
  const group = createNode("div", { className: "segments" });
  group.setAttribute("role", "radiogroup");
  group.setAttribute("aria-label", "Malignancy of nodule " + number);
  for (const [value, text] of [[null, "unguided"], ["benign", "benign"], ["malignant", "malignant"]]) {
    const button = createNode("button", { type: "button", textContent: text });
    button.setAttribute("role", "radio");
    setChecked(button, nodule.features.malignancy === value);
    button.onclick = () => setFeature(nodule, "malignancy", value);
    group.append(button);
  }
  return group;
}

// slider of a rating; 0 stands for no rating
function ratingSlider(nodule, number, feature) {
  const value = nodule.features[feature];
  const slider = createNode("input", { type: "range", min: 0, max: props.highestRating, step: 1, value: value || 0 });
  const shown = createNode("output", { textContent: value || "free" });
  slider.oninput = () => (shown.textContent = Number(slider.value) || "free");
  slider.onchange = () => setFeature(nodule, feature, Number(slider.value) || null);
  slider.setAttribute("aria-label", feature + " of nodule " + number);
  return createNode("label", { className: "range" }, feature, slider, shown);
}

function removeNodule(nodule) {
  saveForUndo();
  for (const pixel of nodule.pixels) labels[pixel] = baseLabels[pixel];
  mapChanged();
}

function noduleCard(nodule, index) {
  const number = index + 1;
  const millimetres = 2 * Math.sqrt(nodule.pixels.length / Math.PI) * pixelSpacing;
  const dot = createNode("span", { className: "dot" });
  dot.style.background = colourOf(nodule.label);
  const title = createNode("strong", {}, "Nodule " + number);
  const size = createNode("span", { className: "size", textContent: millimetres.toFixed(0) + " mm" });
  const remove = createNode("button", { type: "button", className: "plain", textContent: "Remove" });
  remove.onclick = () => removeNodule(nodule);
  const sliders = props.ratedFeatures.map((feature) => ratingSlider(nodule, number, feature));
  const header = createNode("header", {}, dot, title, size, remove);
  return createNode("section", { className: "nodule" }, header, malignancyButtons(nodule, number), ...sliders);
}

function setFeature(nodule, feature, value) {
  nodule.features = { ...nodule.features, [feature]: value };
  showNodules();
  publish();
}

function showNodules() {
  const hint = createNode("p", { className: "hint", textContent: "No nodule yet: click on a lung to place one." });
  find(".nodules").replaceChildren(...(nodules.length ? nodules.map(noduleCard) : [hint]));
}

// ---- events

function position(event) {
  const box = marksCanvas.getBoundingClientRect();
  return {
    x: ((event.clientX - box.left) / box.width) * width - 0.5,
    y: ((event.clientY - box.top) / box.height) * height - 0.5,
  };
}

let lastPoint = null; // of the pointer, while it draws
marksCanvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || tool === "nodule") return;
  event.preventDefault();
  marksCanvas.setPointerCapture(event.pointerId);
  showMessage("");
  saveForUndo();
  lastPoint = position(event);
  paintLine(lastPoint, lastPoint);
});
marksCanvas.addEventListener("pointermove", (event) => {
  pointer = event.pointerType === "mouse" ? position(event) : null;
  if (lastPoint) {
    const point = position(event);
    paintLine(lastPoint, point);
    lastPoint = point;
  }
  drawMarks();
});
for (const type of ["pointerup", "pointercancel"]) {
  marksCanvas.addEventListener(type, () => {
    if (!lastPoint) return;
    lastPoint = null;
    mapChanged();
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
  if (key === "z" && !event.shiftKey) undo();
  else if (key === "y" || (key === "z" && event.shiftKey)) redo();
  else return;
  event.preventDefault();
});
find("[data-action=undo]").onclick = undo;
find("[data-action=redo]").onclick = redo;
findAll("[data-tool]").forEach((button) => (button.onclick = () => chooseTool(button.dataset.tool)));
findAll("input[type=range]").forEach((slider) => slider.addEventListener("input", showValues));
find(".pixel-spacing").onchange = (event) => {
  const value = Number(event.target.value);
  const [lowest, highest] = props.pixelSpacings;
  if (!(value >= lowest && value <= highest)) {
    event.target.value = pixelSpacing;
    return showMessage("The edge of a pixel of chest CT is " + lowest + " to " + highest + " mm.", true);
  }
  pixelSpacing = value;
  mapChanged();
};
find(".upload-button").onkeydown = (event) => {
  if (event.key === "Enter" || event.key === " ") find("input[type=file]").click();
};
find("input[type=file]").onchange = async (event) => {
  const file = event.target.files[0];
  event.target.value = "";
  if (!file) return;
  if (file.size > props.maxUpload) {
    const [size, allowed] = [file.size, props.maxUpload].map((bytes) => (bytes / 2 ** 20).toFixed(0) + " MiB");
    return showMessage("The file has " + size + ", but at most " + allowed + " are accepted.", true);
  }
  showMessage("Reading " + file.name + " ...");
  const data = await new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.readAsDataURL(file);
  });
  const answer = await ask(server.read_upload, { name: file.name, data: data });
  if (answer.error) return showMessage(answer.error, true);
  await loadMap(answer.map, answer.pixel_spacing, null);
  showMessage(answer.message);
};

// ---- start

props.labels.forEach((label, index) => {
  const swatch = createNode("span", { className: "swatch" });
  swatch.style.background = colourOf(index);
  const button = createNode("button", { type: "button", title: "Draw " + label.name }, swatch, label.name);
  button.setAttribute("role", "radio");
  button.dataset.label = index;
  button.onclick = () => {
    brushLabel = index;
    chooseTool("brush");
  };
  find(".legend").append(button);
});
props.shapes.forEach((shape) => find(".shape").append(createNode("option", { value: shape, textContent: shape })));
Object.assign(find(".diameter"), { min: props.diameters[0], max: props.diameters[1], value: START_DIAMETER });
Object.assign(find(".pixel-spacing"), { min: props.pixelSpacings[0], max: props.pixelSpacings[1] });
props.examples.forEach(async (example) => {
  const canvas = createNode("canvas", { width: example.map.shape[1], height: example.map.shape[0] });
  const caption = createNode("span", { textContent: example.title.split(",")[0] });
  const button = createNode("button", { type: "button", title: example.title }, canvas, caption);
  button.dataset.title = example.title;
  button.onclick = () => {
    showMessage("");
    loadMap(example.map, example.pixel_spacing, example.title);
  };
  find(".examples").append(button);
  paintMap(canvas, await unpackArray(example.map), canvas.width, canvas.height);
});
showValues();
chooseTool("nodule");
loadMap(props.value.map, props.value.pixel_spacing, props.examples[0].title);
