// Arrays as JSON between server and browser; packed_array.py is the other side.
const ARRAY_TYPES = { uint8: Uint8Array, int16: Int16Array };

async function throughStream(bytes, stream) {
  return new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer();
}

async function packArray(array, dtype, shape) {
  const bytes = new Uint8Array(await throughStream(array, new CompressionStream("deflate")));
  let text = "";
  for (let start = 0; start < bytes.length; start += 32768) {
    text += String.fromCharCode(...bytes.subarray(start, start + 32768));
  }
  return { dtype: dtype, shape: shape, data: btoa(text) };
}

function bytesFromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

async function unpackArray(packed) {
  return new ARRAY_TYPES[packed.dtype](await throughStream(bytesFromBase64(packed.data), new DecompressionStream("deflate")));
}
