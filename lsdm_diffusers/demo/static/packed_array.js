// Arrays as JSON between server and browser; packed_array.py is the other side.
const ARRAY_TYPES = { uint8: Uint8Array, int16: Int16Array };
const BYTES_PER_CALL = 32768; // a function takes no more arguments than about 65,000

async function throughStream(bytes, stream) {
  return new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer();
}

async function packArray(array, dtype, shape) {
  const bytes = new Uint8Array(await throughStream(array, new CompressionStream("deflate")));
  let text = "";
  for (let start = 0; start < bytes.length; start += BYTES_PER_CALL) {
    text += String.fromCharCode(...bytes.subarray(start, start + BYTES_PER_CALL));
  }
  return { dtype: dtype, shape: shape, data: btoa(text) };
}

function bytesFromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

async function unpackArray(packed) {
  const unpacked = await throughStream(bytesFromBase64(packed.data), new DecompressionStream("deflate"));
  return new ARRAY_TYPES[packed.dtype](unpacked);
}
