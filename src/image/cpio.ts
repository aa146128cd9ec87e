/**
 * Writes a cpio archive of the "new ASCII" kind, the format of Linux's initramfs
 * (Documentation/driver-api/early-userspace/buffer-format.rst).
 *
 * @module
 */

const S_IFDIR = 0o040000;
const S_IFCHR = 0o020000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

/**
 * An archive that grows by its entries; all belong to root and are dated 0, so that it depends on
 * its content alone.
 */
export class CpioWriter {
  readonly #parts: Uint8Array[] = [];
  #length = 0;
  #inode = 1;

  /** Adds an empty folder. */
  directory(path: string, mode = 0o755): void {
    this.#entry(path, S_IFDIR | mode, new Uint8Array());
  }

  /** Adds a regular file. */
  file(path: string, content: Uint8Array | string, mode = 0o644): void {
    const bytes = typeof content === "string" ? new TextEncoder().encode(content) : content;
    this.#entry(path, S_IFREG | mode, bytes);
  }

  /** Adds a symbolic link. */
  symlink(path: string, target: string): void {
    this.#entry(path, S_IFLNK | 0o777, new TextEncoder().encode(target));
  }

  /** Adds a character device. */
  characterDevice(path: string, device: { major: number; minor: number; mode: number }): void {
    this.#entry(path, S_IFCHR | device.mode, new Uint8Array(), device);
  }

  /** Ends the archive and returns it. */
  end(): Uint8Array<ArrayBuffer> {
    this.#entry("TRAILER!!!", 0, new Uint8Array());
    const all = new Uint8Array(this.#length);
    let offset = 0;
    for (const part of this.#parts) {
      all.set(part, offset);
      offset += part.length;
    }
    return all;
  }

  #entry(path: string, mode: number, content: Uint8Array, device = { major: 0, minor: 0 }): void {
    const name = new TextEncoder().encode(`${path}\0`);
    const fields = [
      this.#inode++,
      mode,
      0, // uid
      0, // gid
      1, // nlink
      0, // mtime
      content.length,
      0, // devmajor
      0, // devminor
      device.major,
      device.minor,
      name.length,
      0, // check
    ];
    const header = "070701" + fields.map((field) => field.toString(16).padStart(8, "0")).join("");
    this.#push(new TextEncoder().encode(header));
    this.#push(name);
    this.#pad();
    this.#push(content);
    this.#pad();
  }

  #push(bytes: Uint8Array): void {
    this.#parts.push(bytes);
    this.#length += bytes.length;
  }

  #pad(): void {
    this.#push(new Uint8Array((4 - this.#length % 4) % 4));
  }
}
