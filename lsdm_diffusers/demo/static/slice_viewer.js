// The viewer: shows the slices of `props.value` in a CT window, and downloads them. The properties come from
// slice_viewer.py. Runs after component.js and packed_array.js.

const FULL_DIFFERENCE = 250; // HU from which on a difference has its full colour
const DIFFERENCE_GREY = 0.35; // brightness of the slice beneath the colours of the difference
const INCREASE_COLOUR = [255, 120, 60], DECREASE_COLOUR = [70, 150, 255];
const OVERLAY_OPACITY = 0.4;
const CLOSE_UP_SHARE = 0.34; // edge of the close-up, of the edge of the picture
const CLOSE_UP_EDGE = 64; // pixels of the slice that it shows at least
const CLOSE_UP_DIAMETERS = 2.6; // of the nodule that it shows at least
const CANVAS_SCALE = 2; // canvas pixels for each pixel of the slice, so that the close-up is sharp
const URL_LIFETIME = 60000; // ms for which a download may take its file

let slices = []; // those of props.value with their arrays unpacked: {..., hu, map, unguided}
let chosen = 0;
let currentWindow = props.windows[0];
let boardKey = null; // of the map on the board
let pinnedPoint = null; // {x, y} of the last click, where HU are read while the mouse is elsewhere

// ---- pixels

// as `apply_window` of the server (DICOM PS3.3, C.11.2.1.2.1)
function grey(hu) {
  return 255 * Math.min(1, Math.max(0, (hu - (currentWindow.centre - 0.5)) / (currentWindow.width - 1) + 0.5));
}

// the HU that are subtracted from a slice for the difference, or null
function reference(slice) {
  if (props.value.compare) return slices[0] === slice ? null : slices[0].hu;
  return slice.unguided;
}

function differenceColour(hu, referenceHu) {
  const change = Math.max(-1, Math.min(1, (hu - referenceHu) / FULL_DIFFERENCE));
  const base = DIFFERENCE_GREY * grey(hu), opacity = Math.abs(change);
  const colour = change > 0 ? INCREASE_COLOUR : DECREASE_COLOUR;
  return colour.map((channel) => base * (1 - opacity) + channel * opacity);
}

function picture(slice) {
  const image = new ImageData(slice.width, slice.height);
  const referenceHu = find(".difference").checked ? reference(slice) : null;
  const overlay = find(".overlay").checked;
  for (let i = 0; i < slice.hu.length; i++) {
    const value = grey(slice.hu[i]);
    let rgb = referenceHu ? differenceColour(slice.hu[i], referenceHu[i]) : [value, value, value];
    if (overlay && slice.map[i]) {
      const colour = props.labels[slice.map[i]].colour;
      rgb = rgb.map((channel, k) => (1 - OVERLAY_OPACITY) * channel + OVERLAY_OPACITY * colour[k]);
    }
    image.data.set([rgb[0], rgb[1], rgb[2], 255], 4 * i);
  }
  return image;
}

// square of the slice with nodule `index` and its surroundings
function closeUpBox(slice, index) {
  const nodule = slice.nodules[index];
  const edge = Math.min(slice.width, slice.height, Math.max(CLOSE_UP_EDGE, CLOSE_UP_DIAMETERS * nodule.diameter));
  const inside = (centre, size) => Math.max(0, Math.min(size - edge, centre - edge / 2));
  return { x: inside(nodule.yx[1], slice.width), y: inside(nodule.yx[0], slice.height), edge: edge };
}

// where the close-up is drawn: below the slice when two are compared, else in its emptiest corner; null without one
function closeUp(slice) {
  const index = Number(find(".closeup").value);
  if (find(".closeup").value === "" || !slice.nodules[index]) return null;
  const box = closeUpBox(slice, index);
  if (props.value.compare) return { box: box, left: 0, top: slice.height + 1, size: slice.width };
  const size = CLOSE_UP_SHARE * Math.min(slice.width, slice.height), margin = 4;
  const right = slice.width - size - margin, bottom = slice.height - size - margin;
  const places = [[right, bottom], [margin, bottom], [right, margin], [margin, margin]];
  const corners = places.map(([left, top]) => ({ left: left, top: top, covered: 0 }));
  const step = 4; // pixels; each fourth row and column is enough
  for (const corner of corners) {
    for (let y = Math.floor(corner.top); y < corner.top + size; y += step) {
      for (let x = Math.floor(corner.left); x < corner.left + size; x += step) {
        corner.covered += slice.map[y * slice.width + x] > 0;
      }
    }
  }
  const best = corners.reduce((a, b) => (b.covered < a.covered ? b : a));
  return { box: box, left: best.left, top: best.top, size: size };
}

function draw(canvas, slice) {
  const place = closeUp(slice);
  canvas.width = CANVAS_SCALE * slice.width;
  canvas.height = CANVAS_SCALE * Math.max(slice.height, place ? place.top + place.size : 0);
  const context = canvas.getContext("2d");
  const plain = createNode("canvas", { width: slice.width, height: slice.height });
  plain.getContext("2d").putImageData(picture(slice), 0, 0);
  context.imageSmoothingQuality = "high";
  context.scale(CANVAS_SCALE, CANVAS_SCALE);
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
  findAll(".panel canvas").forEach((canvas, index) => draw(canvas, shown()[index]));
  findAll(".panel figcaption").forEach((node, index) => (node.textContent = caption(shown()[index])));
  find(".scale").hidden = !find(".difference").checked;
}

// what a panel shows: a slice, or the difference of two
function caption(slice) {
  const title = slices.length > 1 ? slice.title : "";
  if (!find(".difference").checked || !reference(slice)) return title;
  if (props.value.compare) return slice.title.split(",")[0] + " minus " + slices[0].title;
  return (title ? title + ", " : "") + "guided minus unguided";
}

function markEarlierMap() {
  find(".earlier").hidden = !slices.some((slice) => slice.mapKey !== boardKey);
}

function showSlices() {
  const panels = shown().map((slice) => {
    const canvas = createNode("canvas", {});
    const panel = createNode("figure", { className: "panel" }, canvas, createNode("figcaption", {}));
    panel.classList.toggle("active", slices[chosen] === slice);
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerType === "mouse") readOut(pixelAt(event, canvas, slice));
    });
    canvas.addEventListener("pointerleave", () => readOut(pinnedPoint));
    canvas.addEventListener("click", (event) => {
      pinnedPoint = pixelAt(event, canvas, slice);
      readOut(pinnedPoint);
      choose(slices.indexOf(slice));
    });
    return panel;
  });
  find(".panels").replaceChildren(...panels);
  find(".empty").hidden = slices.length > 0;
  find(".difference").disabled = !slices.some(reference);
  if (find(".difference").disabled) find(".difference").checked = false;
  showCloseUpOptions(slices.length ? slices[0].nodules.length : 0);
  find(".downloads").hidden = !slices.length;
  markEarlierMap();
  showThumbnails();
  drawPanels();
  readOut(pinnedPoint);
  choose(Math.min(chosen, Math.max(0, slices.length - 1)));
}

// keep the nodule of the close-up if the new slices have it, else take the first
function showCloseUpOptions(count) {
  const select = find(".closeup"), before = select.value;
  const options = [createNode("option", { value: "", textContent: "off" })];
  for (let index = 0; index < count; index++) {
    options.push(createNode("option", { value: String(index), textContent: "nodule " + (index + 1) }));
  }
  select.replaceChildren(...options);
  if (before !== "" && Number(before) < count) select.value = before;
  else select.value = count ? "0" : "";
}

function showThumbnails() {
  const thumbnailSlices = slices.length > 1 && !props.value.compare ? slices : [];
  find(".thumbnails").replaceChildren(
    ...thumbnailSlices.map((slice, index) => {
      const canvas = createNode("canvas", { width: slice.width, height: slice.height });
      canvas.getContext("2d").putImageData(picture(slice), 0, 0);
      const button = createNode("button", { type: "button", title: slice.title }, canvas);
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
  findAll(".panel").forEach((panel, i) => panel.classList.toggle("active", shown()[i] === slices[chosen]));
  findAll(".thumbnails button").forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
  find(".download-title").textContent = slices.length > 1 ? "Download (" + slices[chosen].title + ")" : "Download";
}

// the pixel of the slice under the mouse, also within the close-up
function pixelAt(event, canvas, slice) {
  const frame = canvas.getBoundingClientRect(), unit = slice.width / frame.width;
  let x = (event.clientX - frame.left) * unit, y = (event.clientY - frame.top) * unit;
  const place = closeUp(slice);
  const within = (value, start) => value >= start && value < start + place.size;
  if (place && within(x, place.left) && within(y, place.top)) {
    x = place.box.x + ((x - place.left) / place.size) * place.box.edge;
    y = place.box.y + ((y - place.top) / place.size) * place.box.edge;
  }
  const pixel = (value, size) => Math.max(0, Math.min(size - 1, Math.floor(value)));
  return { x: pixel(x, slice.width), y: pixel(y, slice.height) };
}

function readOut(point) {
  if (!slices.length || !point) {
    find(".readout").textContent = slices.length ? "Point at the slice to read Hounsfield units." : "";
    return;
  }
  const pixel = point.y * slices[0].width + point.x;
  const values = shown().map((slice) => {
    const unguided = props.value.compare ? null : slice.unguided;
    const name = props.value.compare ? slice.title.split(",")[0] + " " : "";
    return name + slice.hu[pixel] + " HU" + (unguided ? " (unguided " + unguided[pixel] + ")" : "");
  });
  const place = "row " + point.y + ", column " + point.x + ", " + props.labels[shown()[0].map[pixel]].name;
  find(".readout").textContent = values.join(" | ") + " at " + place;
}

function showProgress(progress) {
  const starts = progress && find(".progress").hidden;
  find(".progress").hidden = !progress;
  if (starts && window.matchMedia("(max-width: 640px)").matches) find(".stage").scrollIntoView({ block: "center" });
  if (!progress) return find(".preview").removeAttribute("src");
  find(".done").style.width = 100 * progress.fraction + "%";
  find(".progress-text").textContent = progress.text;
  if (progress.preview) find(".preview").src = progress.preview;
}

// ---- events

let shownIds = []; // of the slices, so that an update of the progress alone unpacks nothing
let updateCount = 0;
async function update() {
  const updateNumber = ++updateCount;
  const value = props.value;
  showProgress(value.progress);
  find(".message").textContent = value.message || "";
  const ids = value.slices.map((slice) => slice.id);
  if (ids.join() === shownIds.join()) return;
  const arrays = await Promise.all(
    value.slices.map(async (slice) => ({
      ...slice,
      packed: slice.hu,
      packedMap: slice.map,
      height: slice.hu.shape[0],
      width: slice.hu.shape[1],
      hu: await unpackArray(slice.hu),
      map: await unpackArray(slice.map),
      unguided: slice.unguided && (await unpackArray(slice.unguided)),
    })),
  );
  if (updateNumber !== updateCount) return; // a newer update unpacks its own slices
  shownIds = ids;
  slices = arrays;
  if (slices.length <= 1) {
    chosen = 0;
    pinnedPoint = null;
  }
  showSlices();
}

async function download(format) {
  const slice = slices[chosen];
  const name = "synthetic-ct-" + slice.title.replace(/[^a-z0-9]+/gi, "-");
  const answer = await ask(server.export_slice, {
    hu: slice.packed, map: slice.packedMap, format: format, name: name, pixel_spacing: slice.pixelSpacing,
    window: currentWindow.name, parameters: slice.parameters,
  });
  find(".message").textContent = answer.error || "";
  if (answer.error) return;
  const address = URL.createObjectURL(new Blob([bytesFromBase64(answer.data)]));
  createNode("a", { href: address, download: answer.name }).click();
  setTimeout(() => URL.revokeObjectURL(address), URL_LIFETIME);
}

props.windows.forEach((option) => {
  const button = createNode("button", { type: "button", textContent: option.name });
  button.title = "centre " + option.centre + " HU, width " + option.width + " HU";
  button.setAttribute("role", "radio");
  button.onclick = () => {
    currentWindow = option;
    findAll(".windows button").forEach((other) => other.setAttribute("aria-checked", String(other === button)));
    drawPanels();
    showThumbnails();
    choose(chosen);
  };
  find(".windows").append(button);
});
find(".windows button").setAttribute("aria-checked", "true");
for (const control of [".overlay", ".difference", ".closeup"]) find(control).onchange = drawPanels;
findAll("[data-format]").forEach((button) => (button.onclick = () => download(button.dataset.format)));
const rgbOf = (colour) => "rgb(" + colour.join(",") + ")";
const noDifference = Array(3).fill(DIFFERENCE_GREY * 128);
find(".scale-lowest").textContent = "\u2212" + FULL_DIFFERENCE + " HU and below";
find(".scale-highest").textContent = "+" + FULL_DIFFERENCE + " HU and above";
find(".scale-colours").style.background =
  "linear-gradient(90deg, " + [DECREASE_COLOUR, noDifference, INCREASE_COLOUR].map(rgbOf).join(", ") + ")";
showCloseUpOptions(0);
document.addEventListener("board-map", (event) => {
  boardKey = event.detail;
  markEarlierMap();
});
watch("value", update);
update();
