/**
 * A Debian archive: its signed release, its package index, its packages. Every file is checked by
 * the SHA-256 that the signed `InRelease` leads to (Debian's "RepositoryFormat").
 *
 * @module
 */

import { decompress } from "./decompress.ts";
import { download, get } from "./download.ts";
import { ImageError } from "./errors.ts";

const RELEASE_BYTES_MAX = 4 * 1024 * 1024;
/** The keys that Debian signs its releases with, from the package debian-archive-keyring. */
export const DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg";
const DEFAULT_MIRROR = "http://deb.debian.org/debian";

/** A package, as its index describes it. */
export interface DebianPackage {
  /** Field `Package`. */
  name: string;
  /** Field `Version`. */
  version: string;
  /** Field `Depends` as it stands there, "" where the package needs nothing. */
  depends: string;
  /** Field `Filename`: a path below the mirror, checked to lie in `pool/`. */
  filename: string;
  /** Field `Size`: of the .deb file. */
  sizeBytes: number;
  /** Field `SHA256`: of the .deb file, 64 hexadecimal digits. */
  sha256: string;
}

/** Options of `readPackages`. */
export interface ArchiveOptions {
  /** Its http or https address, without a final `/`. */
  mirror: string;
  /** A name below `dists/`: "trixie", "stable". */
  suite: string;
  /** As Debian names it: "riscv64". */
  architecture: string;
  /** The keys whose signature on the release is accepted. */
  keyring: string;
  /** Where indexes and packages are kept for the next time. */
  cacheDirectory: string;
  /** Called as bytes come; `what` names the file for people. */
  onProgress?: (what: string, doneBytes: number, totalBytes: number) => void;
  /** Called with what the user should know, e.g. that no signature could be checked. */
  onWarning?: (message: string) => void;
  /** Breaks the transfer off; what came is kept for the next time. */
  signal?: AbortSignal;
}

/** The mirror that apt on this machine is set to, else Debian's own. */
export async function aptMirror(directory = "/etc/apt"): Promise<string> {
  const files = [`${directory}/sources.list`];
  try {
    for await (const entry of Deno.readDir(`${directory}/sources.list.d`)) {
      files.push(`${directory}/sources.list.d/${entry.name}`);
    }
  } catch {
    // no apt here
  }
  for (const path of files.sort()) {
    const text = await Deno.readTextFile(path).catch(() => "");
    const pattern = path.endsWith(".sources")
      ? /^URIs:\s*(https?:\/\/\S+\/debian)\/?\s*$/gm
      : /^deb\s+(?:\[[^\]]*\]\s+)?(https?:\/\/\S+\/debian)\/?\s/gm;
    for (const match of text.matchAll(pattern)) if (match[1] !== undefined) return match[1];
  }
  return DEFAULT_MIRROR;
}

/** The packages of the suite's main component whose name `wants`; the index is verified first. */
export async function readPackages(
  options: ArchiveOptions,
  wants: (name: string) => boolean,
): Promise<DebianPackage[]> {
  const release = await readRelease(options);
  const path = `main/binary-${options.architecture}/Packages.xz`;
  const entry = releaseEntry(release, path);
  if (entry === undefined) {
    throw new ImageError(`${options.suite} has no packages for ${options.architecture}`);
  }
  const file = `${options.cacheDirectory}/${entry.sha256}.Packages.xz`;
  const dist = `${options.mirror}/dists/${options.suite}`;
  const common = {
    path: file,
    ...entry,
    onProgress: (done: number, total: number) => options.onProgress?.("package index", done, total),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  };
  // By hash first: the plain name may already be that of the next release of the index.
  const byHash = `${dist}/${path.replace(/[^/]+$/, "")}by-hash/SHA256/${entry.sha256}`;
  try {
    await download({ ...common, url: byHash });
  } catch (error) {
    if (!(error instanceof ImageError)) throw error;
    await download({ ...common, url: `${dist}/${path}` });
  }
  using input = await Deno.open(file);
  return await parsePackages(decompress(file, input.readable), wants);
}

/** Fetches a package into the cache and returns its path. */
export async function fetchPackage(pkg: DebianPackage, options: ArchiveOptions): Promise<string> {
  const path = `${options.cacheDirectory}/${pkg.sha256}.deb`;
  await download({
    url: `${options.mirror}/${pkg.filename}`,
    path,
    sizeBytes: pkg.sizeBytes,
    sha256: pkg.sha256,
    onProgress: (done, total) => options.onProgress?.(`${pkg.name} ${pkg.version}`, done, total),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  return path;
}

/** Reads the stanzas of an index; those whose name `wants`. */
export async function parsePackages(
  stream: ReadableStream<Uint8Array<ArrayBuffer>>,
  wants: (name: string) => boolean,
): Promise<DebianPackage[]> {
  const packages: DebianPackage[] = [];
  let rest = "";
  const take = (stanza: string): void => {
    const name = field(stanza, "Package");
    if (name === undefined || !wants(name)) return;
    const sizeBytes = Number(field(stanza, "Size"));
    const sha256 = field(stanza, "SHA256") ?? "";
    const filename = field(stanza, "Filename") ?? "";
    const isGood = /^[0-9a-f]{64}$/.test(sha256) && Number.isSafeInteger(sizeBytes) &&
      /^pool\/[^\s]+$/.test(filename) && !filename.includes("..");
    if (!isGood) throw new ImageError(`the index describes ${name} badly`);
    packages.push({
      name,
      version: field(stanza, "Version") ?? "",
      depends: field(stanza, "Depends") ?? "",
      filename,
      sizeBytes,
      sha256,
    });
  };
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const stanzas = (rest + text).split("\n\n");
    rest = stanzas.pop() ?? "";
    for (const stanza of stanzas) take(stanza);
  }
  take(rest);
  return packages;
}

function field(stanza: string, name: string): string | undefined {
  return new RegExp(`^${name}: (.*)$`, "m").exec(stanza)?.[1];
}

async function readRelease(options: ArchiveOptions): Promise<string> {
  const url = `${options.mirror}/dists/${options.suite}/InRelease`;
  const response = await get(url, { signal: options.signal ?? null });
  const bytes = new Uint8Array(await response.arrayBuffer());
  if (bytes.length > RELEASE_BYTES_MAX) throw new ImageError(`${url} is too large`);
  return await verifiedText(bytes, url, options);
}

/**
 * The signed text of an InRelease file. Only what gpgv says was signed is used, where it is
 * installed.
 */
async function verifiedText(
  bytes: Uint8Array<ArrayBuffer>,
  url: string,
  options: ArchiveOptions,
): Promise<string> {
  const output = await runGpgv(bytes, options.keyring);
  if (output === undefined) {
    options.onWarning?.(
      `gpgv or ${options.keyring} is not installed: the signature of ${url} was not checked`,
    );
    const text = new TextDecoder().decode(bytes);
    return text.split("-----BEGIN PGP SIGNATURE-----")[0]?.replace(/^- /gm, "") ?? "";
  }
  if (!output.success) {
    const reason = new TextDecoder().decode(output.stderr).trim();
    throw new ImageError(`the signature of ${url} is not good:\n${reason}`);
  }
  return new TextDecoder().decode(output.stdout);
}

async function runGpgv(
  bytes: Uint8Array<ArrayBuffer>,
  keyring: string,
): Promise<Deno.CommandOutput | undefined> {
  try {
    await Deno.stat(keyring);
    const child = new Deno.Command("gpgv", {
      args: ["--keyring", keyring, "--output", "-", "-"],
      stdin: "piped",
      stdout: "piped",
      stderr: "piped",
    }).spawn();
    const writer = child.stdin.getWriter();
    await writer.write(bytes).then(() => writer.close()).catch(() => {}); // gpgv may end before
    return await child.output();
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}

/** Size and SHA-256 that a release gives for one of its files. */
export function releaseEntry(
  release: string,
  path: string,
): { sizeBytes: number; sha256: string } | undefined {
  const section = /^SHA256:\n((?: .*\n?)*)/m.exec(release)?.[1] ?? "";
  for (const line of section.split("\n")) {
    const [sha256, size, name] = line.trim().split(/\s+/);
    if (name === path && sha256 !== undefined) return { sha256, sizeBytes: Number(size) };
  }
  return undefined;
}
