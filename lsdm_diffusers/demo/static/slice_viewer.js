const find = (selector) => element.querySelector(selector);
const DIFFERENCE = 400; // HU at which a difference has its full colour
const CLOSE_UP = 0.34; // of the edge of the picture

let slices = []; // those of props.value with their arrays unpacked: {..., hu, map, unguided}
let chosen = 0;
let currentWindow = props.windows[0];
let pinned = null; // {x, y} of the last click, where HU are read while the mouse is elsewhere

function make(tag, attributes, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

// ---- pixels

function grey(hu) {
  return 255 * Math.min(1, Math.max(0, (hu - (currentWindow.centre - 0.5)) / (currentWindow.width - 1) + 0.5));
}

// what the difference of a slice is taken to, or null
function reference(slice) {
  if (props.value.compare) return slices[0] === slice ? null : slices[0].hu;
  return slice.unguided;
}

function picture(slice) {
  const image = new ImageData(slice.width, slice.height);
  const other = find(".difference").checked ? reference(slice) : null;
  const overlay = find(".overlay").checked;
  for (let i = 0; i < slice.hu.length; i++) {
    let rgb;
    if (other) {
      const change = Math.max(-1, Math.min(1, (slice.hu[i] - other[i]) / DIFFERENCE));
      const base = 0.35 * grey(slice.hu[i]), shade = Math.min(1, Math.abs(change) * 1.5);
      const colour = change > 0 ? [255, 120, 60] : [70, 150, 255];
      rgb = colour.map((c) => base * (1 - shade) + c * shade);
    } else {
      const value = grey(slice.hu[i]);
      rgb = [value, value, value];
    }
    if (overlay && slice.map[i]) rgb = rgb.map((c, k) => 0.6 * c + 0.4 * props.labels[slice.map[i]].colour[k]);
    image.data.set([rgb[0], rgb[1], rgb[2], 255], 4 * i);
  }
  return image;
}

// square of the slice around nodule `index`, with what is about it
function closeUpBox(slice, index) {
  const nodule = slice.nodules[index];
  const edge = Math.min(slice.width, slice.height, Math.max(64, 2.6 * nodule.diameter));
  const inside = (centre, size) => Math.max(0, Math.min(size - edge, centre - edge / 2));
  return { x: inside(nodule.yx[1], slice.width), y: inside(nodule.yx[0], slice.height), edge: edge };
}

// where the close-up lies: beneath the slice when two are compared, or in its emptiest corner; null without one
function closeUp(slice) {
  const index = Number(find(".closeup").value);
  if (find(".closeup").value === "" || !slice.nodules[index]) return null;
  const box = closeUpBox(slice, index);
  if (props.value.compare) return { box: box, left: 0, top: slice.height + 1, size: slice.width };
  const size = CLOSE_UP * Math.min(slice.width, slice.height), far = [slice.width - size - 4, slice.height - size - 4];
  const corners = [[far[0], far[1]], [4, far[1]], [far[0], 4], [4, 4]].map(([left, top]) => ({ left: left, top: top, covered: 0 }));
  for (const corner of corners) {
    for (let y = Math.floor(corner.top); y < corner.top + size; y += 4) {
      for (let x = Math.floor(corner.left); x < corner.left + size; x += 4) corner.covered += slice.map[y * slice.width + x] > 0;
    }
  }
  const best = corners.reduce((a, b) => (b.covered < a.covered ? b : a));
  return { box: box, left: best.left, top: best.top, size: size };
}

function draw(canvas, slice) {
  const place = closeUp(slice), scale = 2; // so that the close-up is sharp
  canvas.width = scale * slice.width;
  canvas.height = scale * Math.max(slice.height, place ? place.top + place.size : 0);
  const context = canvas.getContext("2d");
  const plain = make("canvas", { width: slice.width, height: slice.height });
  plain.getContext("2d").putImageData(picture(slice), 0, 0);
  context.imageSmoothingQuality = "high";
  context.scale(scale, scale);
  context.drawImage(plain, 0, 0);
  if (!place) return;
  const { box, left, top, size } = place;
  context.lineWidth = 1.5;
  context.strokeStyle = "#fbbf24";
  context.strokeRect(box.x, box.y, box.edge, box.edge);
  context.drawImage(plain, box.x, box.y, box.edge, box.edge, left, top, size, size);
  context.strokeRect(left + 0.75, top + 0.75, size - 1.5, size - 1.5);
}

// ---- what is shown

const shown = () => (props.value.compare ? slices : slices.slice(chosen, chosen + 1));

function drawPanels() {
  element.querySelectorAll(".panel canvas").forEach((canvas, index) => draw(canvas, shown()[index]));
}

function showSlices() {
  const panels = shown().map((slice) => {
    const canvas = make("canvas", {});
    const panel = make("figure", { className: "panel" }, canvas, make("figcaption", { textContent: slices.length > 1 ? slice.title : "" }));
    panel.classList.toggle("active", slices[chosen] === slice);
    canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && readOut(pixelOf(event, canvas, slice)));
    canvas.addEventListener("pointerleave", () => readOut(pinned));
    canvas.addEventListener("click", (event) => {
      pinned = pixelOf(event, canvas, slice);
      readOut(pinned);
      choose(slices.indexOf(slice));
    });
    return panel;
  });
  find(".panels").replaceChildren(...panels);
  find(".empty").hidden = slices.length > 0;
  find(".difference").disabled = !slices.some(reference);
  if (find(".difference").disabled) find(".difference").checked = false;
  const count = slices.length ? slices[0].nodules.length : 0;
  const before = find(".closeup").value;
  const options = [make("option", { value: "", textContent: "off" })];
  for (let index = 0; index < count; index++) options.push(make("option", { value: String(index), textContent: "nodule " + (index + 1) }));
  find(".closeup").replaceChildren(...options);
  find(".closeup").value = Number(before) < count && before !== "" ? before : count ? "0" : "";
  find(".downloads").hidden = !slices.length;
  showThumbnails();
  drawPanels();
  readOut(pinned);
  choose(Math.min(chosen, Math.max(0, slices.length - 1)));
}

function showThumbnails() {
  const wanted = slices.length > 1 && !props.value.compare ? slices : [];
  find(".thumbnails").replaceChildren(
    ...wanted.map((slice, index) => {
      const canvas = make("canvas", { width: slice.width, height: slice.height });
      canvas.getContext("2d").putImageData(picture(slice), 0, 0);
      const button = make("button", { type: "button", title: slice.title }, canvas);
      button.onclick = () => {
        chosen = index;
        showSlices();
      };
      return button;
    }),
  );
}

function choose(index) {
  chosen = index;
  element.querySelectorAll(".panel").forEach((panel, i) => panel.classList.toggle("active", shown()[i] === slices[chosen]));
  element.querySelectorAll(".thumbnails button").forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
  find(".download-title").textContent = slices.length > 1 ? "Download (" + slices[chosen].title + ")" : "Download";
}

// the pixel of the slice under the mouse, also within the close-up
function pixelOf(event, canvas, slice) {
  const frame = canvas.getBoundingClientRect(), unit = slice.width / frame.width;
  let x = (event.clientX - frame.left) * unit, y = (event.clientY - frame.top) * unit;
  const place = closeUp(slice);
  if (place && x >= place.left && y >= place.top && x < place.left + place.size && y < place.top + place.size) {
    x = place.box.x + ((x - place.left) / place.size) * place.box.edge;
    y = place.box.y + ((y - place.top) / place.size) * place.box.edge;
  }
  return { x: Math.max(0, Math.min(slice.width - 1, Math.floor(x))), y: Math.max(0, Math.min(slice.height - 1, Math.floor(y))) };
}

function readOut(point) {
  if (!slices.length || !point) {
    find(".readout").textContent = slices.length ? "Point at the slice to read Hounsfield units." : "";
    return;
  }
  const at = point.y * slices[0].width + point.x;
  const values = shown().map((slice) => {
    const other = props.value.compare ? null : slice.unguided;
    const name = props.value.compare ? slice.title.split(",")[0] + " " : "";
    return name + slice.hu[at] + " HU" + (other ? " (unguided " + other[at] + ")" : "");
  });
  const where = "row " + point.y + ", column " + point.x + ", " + props.labels[shown()[0].map[at]].name;
  find(".readout").textContent = values.join(" | ") + " at " + where;
}

function showProgress(progress) {
  find(".progress").hidden = !progress;
  if (!progress) return find(".preview").removeAttribute("src");
  find(".done").style.width = 100 * progress.fraction + "%";
  find(".progress-text").textContent = progress.text;
  if (progress.preview) find(".preview").src = progress.preview;
}

// ---- events

let unpacked = []; // ids of the slices shown, so that an update of the progress alone unpacks nothing
let updates = 0;
async function update() {
  const mine = ++updates;
  const value = props.value;
  showProgress(value.progress);
  find(".message").textContent = value.message || "";
  const same = unpacked.length === value.slices.length && value.slices.every((slice, i) => slice.id === unpacked[i]);
  if (same) return;
  const arrays = await Promise.all(
    value.slices.map(async (slice) => ({
      ...slice,
      packed: slice.hu,
      height: slice.hu.shape[0],
      width: slice.hu.shape[1],
      hu: await unpackArray(slice.hu),
      map: await unpackArray(slice.map),
      unguided: slice.unguided && (await unpackArray(slice.unguided)),
    })),
  );
  if (mine !== updates) return; // a newer update unpacks its own
  const first = arrays.length <= 1;
  unpacked = value.slices.map((slice) => slice.id);
  slices = arrays;
  if (first) {
    chosen = 0;
    pinned = null;
  }
  showSlices();
}

async function download(format) {
  const slice = slices[chosen];
  const name = "synthetic-ct-" + slice.title.replace(/[^a-z0-9]+/gi, "-");
  const answer = await server.export_slice({
    hu: slice.packed, format: format, name: name, pixel_spacing: slice.pixelSpacing,
    window: currentWindow.name, parameters: slice.parameters,
  }).catch(() => ({ error: "The server did not answer." }));
  find(".message").textContent = answer.error || "";
  if (answer.error) return;
  const address = URL.createObjectURL(new Blob([bytesFromBase64(answer.data)]));
  make("a", { href: address, download: answer.name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

props.windows.forEach((option) => {
  const button = make("button", { type: "button", textContent: option.name });
  button.title = "centre " + option.centre + " HU, width " + option.width + " HU";
  button.setAttribute("role", "radio");
  button.onclick = () => {
    currentWindow = option;
    element.querySelectorAll(".windows button").forEach((other) => other.setAttribute("aria-checked", String(other === button)));
    drawPanels();
    showThumbnails();
    choose(chosen);
  };
  find(".windows").append(button);
});
find(".windows button").setAttribute("aria-checked", "true");
for (const control of [".overlay", ".difference", ".closeup"]) find(control).onchange = drawPanels;
element.querySelectorAll("[data-format]").forEach((button) => (button.onclick = () => download(button.dataset.format)));
watch("value", update);
update();
