/**
 * A Debian mirror of our own on loopback, signed by a key made for the test.
 *
 * @module
 */

import { createHash } from "node:crypto";

/** Runs a program; its standard output. Throws with its standard error where it fails. */
export async function run(program: string, args: string[], options: Deno.CommandOptions = {}) {
  const output = await new Deno.Command(program, {
    args,
    stdout: "piped",
    stderr: "piped",
    ...options,
  }).output();
  if (!output.success) throw new Error(`${program}: ${new TextDecoder().decode(output.stderr)}`);
  return output.stdout;
}

/**
 * Writes the files `content` (by path) into a package with dpkg-deb; `compression`: xz, zstd, gzip.
 */
export async function makeDeb(
  path: string,
  content: Record<string, string | Uint8Array>,
  compression: string,
): Promise<void> {
  const root = await Deno.makeTempDir();
  try {
    await Deno.mkdir(`${root}/DEBIAN`);
    await Deno.writeTextFile(
      `${root}/DEBIAN/control`,
      "Package: sample\nVersion: 1\nArchitecture: riscv64\nMaintainer: nobody\nDescription: sample\n",
    );
    for (const [name, bytes] of Object.entries(content)) {
      await Deno.mkdir(`${root}/${name}`.replace(/\/[^/]*$/, ""), { recursive: true });
      await Deno.writeFile(
        `${root}/${name}`,
        typeof bytes === "string" ? new TextEncoder().encode(bytes) : bytes,
      );
    }
    await run("dpkg-deb", [`-Z${compression}`, "--root-owner-group", "-b", root, path]);
  } finally {
    await Deno.remove(root, { recursive: true });
  }
}

/** The lower-case hexadecimal SHA-256 of `bytes`. */
export function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/** A mirror whose files are in memory: tests change them to damage it. */
export class TestMirror implements AsyncDisposable {
  readonly files = new Map<string, Uint8Array<ArrayBuffer>>();
  /** Paths that were asked for, with their Range. */
  readonly requests: string[] = [];
  /** A response to this path ends after so many bytes, once. */
  cutAfter: { path: string; byteCount: number } | undefined;
  readonly #server: Deno.HttpServer<Deno.NetAddr>;
  readonly #home: string;

  private constructor(home: string) {
    this.#home = home;
    this.#server = Deno.serve({ port: 0, hostname: "127.0.0.1", onListen() {} }, (request) => {
      return this.#answer(request);
    });
  }

  /** A mirror with a key, without files. */
  static async create(): Promise<TestMirror> {
    const mirror = new TestMirror(await Deno.makeTempDir());
    await mirror.#gpg(["--quick-generate-key", "test@localhost", "ed25519", "sign", "never"]);
    await mirror.#gpg(["--output", mirror.keyring, "--export"]);
    return mirror;
  }

  /** Its address, as a user gives it to --mirror. */
  get url(): string {
    return `http://127.0.0.1:${this.#server.addr.port}/debian`;
  }

  /** The file of its public key. */
  get keyring(): string {
    return `${this.#home}/keyring.gpg`;
  }

  /** Publishes packages: index and signed release. */
  async publish(
    suite: string,
    packages: { name: string; depends?: string; deb: Uint8Array<ArrayBuffer> }[],
  ): Promise<void> {
    let index = "";
    for (const { name, depends, deb } of packages) {
      const filename = `pool/main/${name}.deb`;
      this.files.set(filename, deb);
      index += `Package: ${name}\nVersion: 1-1\n${depends ? `Depends: ${depends}\n` : ""}` +
        `Filename: ${filename}\nSize: ${deb.length}\nSHA256: ${sha256(deb)}\n\n`;
    }
    const plain = await Deno.makeTempFile();
    await Deno.writeTextFile(plain, index);
    const packed = await run("xz", ["-c", plain]) as Uint8Array<ArrayBuffer>;
    await Deno.remove(plain);
    this.files.set(`dists/${suite}/main/binary-riscv64/Packages.xz`, packed);
    const release = `Suite: ${suite}\nSHA256:\n ${sha256(packed)} ${packed.length} ` +
      "main/binary-riscv64/Packages.xz\n";
    await Deno.writeTextFile(`${this.#home}/Release`, release);
    const output = `${this.#home}/InRelease`;
    await this.#gpg(["--yes", "--output", output, "--clearsign", `${this.#home}/Release`]);
    this.files.set(`dists/${suite}/InRelease`, await Deno.readFile(output));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
    await run("gpgconf", ["--homedir", this.#home, "--kill", "all"]);
    await Deno.remove(this.#home, { recursive: true });
  }

  async #gpg(args: string[]): Promise<void> {
    await run("gpg", ["--homedir", this.#home, "--batch", "--passphrase", "", ...args]);
  }

  #answer(request: Request): Response {
    const path = new URL(request.url).pathname.replace("/debian/", "");
    const range = request.headers.get("range");
    this.requests.push(range === null ? path : `${path} ${range}`);
    const bytes = this.files.get(path);
    if (bytes === undefined) return new Response("no such file", { status: 404 });
    const start = Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0);
    const status = start > 0 ? 206 : 200;
    const cut = this.cutAfter;
    if (cut?.path !== path) return new Response(bytes.subarray(start), { status });
    this.cutAfter = undefined;
    const body = new ReadableStream<Uint8Array>({
      start(controller) {
        controller.enqueue(bytes.subarray(start, start + cut.byteCount));
      },
      pull(controller) {
        controller.error(new Error("the connection broke"));
      },
    });
    return new Response(body, { status });
  }
}
