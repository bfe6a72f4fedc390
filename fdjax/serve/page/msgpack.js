// msgpack, as far as the socket's messages use it: https://github.com/msgpack/msgpack.

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** A value as bytes: null, booleans, numbers, strings, arrays and plain objects. */
export function pack(value) {
  const parts = [];
  write(parts, value);
  const size = parts.reduce((sum, part) => sum + part.length, 0);
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

function write(parts, value) {
  if (value === null || value === undefined) parts.push([0xc0]);
  else if (value === false || value === true) parts.push([value ? 0xc3 : 0xc2]);
  else if (typeof value === "number") writeNumber(parts, value);
  else if (typeof value === "string") {
    const bytes = encoder.encode(value);
    parts.push(head(bytes.length, 0xa0, 31, [0xd9, 0xda, 0xdb]), bytes);
  } else if (Array.isArray(value)) {
    parts.push(head(value.length, 0x90, 15, [null, 0xdc, 0xdd]));
    for (const item of value) write(parts, item);
  } else {
    const entries = Object.entries(value);
    parts.push(head(entries.length, 0x80, 15, [null, 0xde, 0xdf]));
    for (const [name, item] of entries) {
      write(parts, name);
      write(parts, item);
    }
  }
}

function writeNumber(parts, value) {
  if (Number.isInteger(value) && value >= 0 && value < 128) parts.push([value]);
  else if (Number.isInteger(value) && value >= 0 && value < 2 ** 32) {
    const bytes = new Uint8Array(5);
    bytes[0] = 0xce;
    new DataView(bytes.buffer).setUint32(1, value);
    parts.push(bytes);
  } else if (Number.isSafeInteger(value)) {
    const bytes = new Uint8Array(9);
    bytes[0] = 0xd3;
    new DataView(bytes.buffer).setBigInt64(1, BigInt(value));
    parts.push(bytes);
  } else {
    const bytes = new Uint8Array(9);
    bytes[0] = 0xcb;
    new DataView(bytes.buffer).setFloat64(1, value);
    parts.push(bytes);
  }
}

function head(size, short, most, [byte, two, four]) {
  if (size <= most) return [short | size];
  if (byte !== null && size < 256) return [byte, size];
  if (size < 65536) return [two, size >> 8, size & 255];
  return [four, size >>> 24, (size >> 16) & 255, (size >> 8) & 255, size & 255];
}

/** The value that bytes (an ArrayBuffer) stand for; binary parts are Uint8Array. */
export function unpack(buffer) {
  const reader = new Reader(buffer);
  const value = reader.read();
  if (reader.at !== buffer.byteLength) throw new Error("bytes behind a message");
  return value;
}

class Reader {
  constructor(buffer) {
    this.view = new DataView(buffer);
    this.at = 0;
  }

  take(method, size) {
    const value = this.view[method](this.at);
    this.at += size;
    return value;
  }

  size(kind) {
    if (kind === 0) return this.take("getUint8", 1);
    return kind === 1 ? this.take("getUint16", 2) : this.take("getUint32", 4);
  }

  bytes(size) {
    const value = new Uint8Array(this.view.buffer, this.at, size);
    if (this.at + size > this.view.byteLength) throw new Error("a message is cut off");
    this.at += size;
    return value;
  }

  list(size) {
    return Array.from({ length: size }, () => this.read());
  }

  map(size) {
    const value = {};
    for (let i = 0; i < size; i++) {
      const name = this.read();
      value[name] = this.read();
    }
    return value;
  }

  read() {
    const code = this.take("getUint8", 1);
    if (code < 0x80) return code;
    if (code < 0x90) return this.map(code & 15);
    if (code < 0xa0) return this.list(code & 15);
    if (code < 0xc0) return decoder.decode(this.bytes(code & 31));
    if (code >= 0xe0) return code - 256;
    switch (code) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: return this.bytes(this.size(code - 0xc4)).slice();
      case 0xca: return this.take("getFloat32", 4);
      case 0xcb: return this.take("getFloat64", 8);
      case 0xcc: return this.take("getUint8", 1);
      case 0xcd: return this.take("getUint16", 2);
      case 0xce: return this.take("getUint32", 4);
      case 0xcf: return Number(this.take("getBigUint64", 8));
      case 0xd0: return this.take("getInt8", 1);
      case 0xd1: return this.take("getInt16", 2);
      case 0xd2: return this.take("getInt32", 4);
      case 0xd3: return Number(this.take("getBigInt64", 8));
      case 0xd9: case 0xda: case 0xdb: return decoder.decode(this.bytes(this.size(code - 0xd9)));
      case 0xdc: return this.list(this.size(1));
      case 0xdd: return this.list(this.size(2));
      case 0xde: return this.map(this.size(1));
      case 0xdf: return this.map(this.size(2));
      default: throw new Error(`unknown msgpack code ${code}`);
    }
  }
}
