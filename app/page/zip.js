/** Files as one ZIP, stored and not compressed, as images are compressed already (APPNOTE 6.3.9, 4.3). */

const LOCAL = 0x04034b50;
const CENTRAL = 0x02014b50;
const END = 0x06054b50;
const VERSION = 20; // 2.0: plain files
const UTF8 = 0x0800; // a flag: names are in UTF-8
const MOST_BYTES = 2 ** 32 - 1; // larger ones need ZIP64

const CRCS = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  return crc;
});

/**
 * @param {{name: string, file: Blob, date: Date}[]} files
 * @returns {Promise<Blob>}
 */
export async function zipped(files) {
  /** @type {BlobPart[]} */
  const entries = [];
  const directory = [];
  const names = new Set();
  let offset = 0;
  for (const { name, file, date } of files) {
    const encoded = new TextEncoder().encode(unique(name, names));
    const crc = crcOf(new Uint8Array(await file.arrayBuffer())); // one file at a time: all of them may be large
    const about = [VERSION, UTF8, 0, timeOf(date), dateOf(date), ...long(crc), ...long(file.size), ...long(file.size)];
    const local = words(...long(LOCAL), ...about, encoded.length, 0);
    directory.push(words(...long(CENTRAL), VERSION, ...about, encoded.length, 0, 0, 0, 0, 0, 0, ...long(offset)), encoded);
    entries.push(local, encoded, file);
    offset += local.length + encoded.length + file.size;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  if (offset + size > MOST_BYTES) throw new RangeError("The images are too large for one ZIP file.");
  const end = words(...long(END), 0, 0, files.length, files.length, ...long(size), ...long(offset), 0);
  return new Blob([...entries, ...directory, end], { type: "application/zip" });
}

/** Numbers of 16 bits, as bytes. @param {...number} values */
function words(...values) {
  const view = new DataView(new ArrayBuffer(values.length * 2));
  values.forEach((value, i) => view.setUint16(i * 2, value, true));
  return new Uint8Array(view.buffer);
}

/** A number of 32 bits as two of 16. @param {number} value */
const long = (value) => [value & 0xffff, value >>> 16];

/** @param {Date} date as DOS writes it */
const timeOf = (date) => (date.getHours() << 11) | (date.getMinutes() << 5) | (date.getSeconds() >> 1);

/** @param {Date} date as DOS writes it */
const dateOf = (date) => ((date.getFullYear() - 1980) << 9) | ((date.getMonth() + 1) << 5) | date.getDate();

/** @param {Uint8Array} bytes */
function crcOf(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRCS[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return ~crc;
}

/** @param {string} name @param {Set<string>} names that are taken */
function unique(name, names) {
  let [free, n] = [name, 1];
  while (names.has(free)) free = name.replace(/(?=\.\w+$)/, `-${++n}`);
  names.add(free);
  return free;
}
