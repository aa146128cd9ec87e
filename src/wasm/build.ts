/**
 * Compiles the AssemblyScript modules to src/wasm/build/*.wasm, each only when it is out of date:
 * the hash of its options and of every source that can reach it stands beside the result.
 *
 *   deno run -A src/wasm/build.ts [--force]
 *
 * Two builds at once are safe: results are written under a temporary name and renamed, and the hash
 * is renamed last, so that a hash never vouches for an older module.
 *
 * @module
 */

/** A module to be built. */
interface Target {
  name: string;
  /** Below assembly/. */
  entry: string;
  /** Folders, below assembly/, whose sources decide whether the result is out of date. */
  folders: string[];
  options: string[];
  /** Looks at the module's text form; returns what is wrong with it. */
  check: (text: string, sources: Map<string, string>) => string | null;
}

const HERE = new URL("./", import.meta.url);
const COMPILER_VERSION = "0.28.20";

const COMMON_OPTIONS = [
  "--importMemory",
  "--sharedMemory",
  // The largest that wasm32 has: the machine's memory, whatever its size, must fit this
  // declaration.
  "--maximumMemory",
  "65536",
  "--runtime",
  "stub",
  "--noAssert",
  "-O3",
  "--converge",
  "--enable",
  "simd,threads,bulk-memory,sign-extension,nontrapping-f2i,relaxed-simd",
  "--use",
  "abort=",
];

const TARGETS: Target[] = [
  {
    name: "hart",
    entry: "hart/exports.ts",
    folders: ["hart"],
    // STATIC_BASE of hart/layout.ts: readLayoutConstant keeps the two the same.
    // Translated code is called through the table.
    options: ["--memoryBase", String(readLayoutConstant("STATIC_BASE")), "--exportTable"],
    check: checkDispatch,
  },
  {
    name: "kernels",
    entry: "kernels/exports.ts",
    folders: ["kernels"],
    options: [],
    check: () => null,
  },
  // For tests: floating point alone.
  {
    name: "float",
    entry: "hart/float/exports.ts",
    folders: ["hart/float"],
    options: [],
    check: () => null,
  },
];

if (import.meta.main) {
  for (const target of TARGETS) await buildModule(target, Deno.args.includes("--force"));
}

/** Brings every module up to date. */
export async function buildModules(): Promise<void> {
  for (const target of TARGETS) await buildModule(target, false);
}

async function buildModule(target: Target, isForced: boolean): Promise<void> {
  const entry = `assembly/${target.entry}`;
  const sources = new Map<string, string>();
  for (const folder of target.folders) readSources(`assembly/${folder}`, sources);
  if (!sources.has(entry)) return;

  const hash = await hashSources(target, sources);
  const wasmPath = new URL(`build/${target.name}.wasm`, HERE);
  const hashPath = new URL(`build/${target.name}.hash`, HERE);
  if (!isForced && readText(hashPath) === hash && exists(wasmPath)) return;

  const started = performance.now();
  const { wasm, text } = await compile(target, entry, sources);
  const complaint = target.check(text, sources);
  if (complaint !== null) throw new Error(`${target.name}.wasm: ${complaint}`);
  Deno.mkdirSync(new URL("build/", HERE), { recursive: true });
  replaceFile(wasmPath, wasm);
  replaceFile(new URL(`build/${target.name}.wat`, HERE), new TextEncoder().encode(text));
  replaceFile(hashPath, new TextEncoder().encode(hash));
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  // deno-lint-ignore no-console
  console.error(`built ${target.name}.wasm: ${wasm.length} bytes in ${seconds} s`);
}

/** Runs the compiler over `sources`, which it is given as they were hashed. */
async function compile(
  target: Target,
  entry: string,
  sources: Map<string, string>,
): Promise<{ wasm: Uint8Array; text: string }> {
  // Most builds find everything up to date and need no compiler.
  const { asc } = await import("./compiler.ts");
  let wasm: Uint8Array | null = null;
  let text: string | null = null;
  let messages = "";
  const { error } = await asc.main(
    [
      entry,
      ...COMMON_OPTIONS,
      ...target.options,
      "--outFile",
      "out.wasm",
      "--textFile",
      "out.wat",
    ],
    {
      stdout: { write: () => undefined },
      stderr: { write: (chunk: string | Uint8Array) => (messages += chunk) },
      readFile: (name: string) => sources.get(name) ?? null,
      listFiles: () => [],
      writeFile: (name: string, contents: string | Uint8Array) => {
        if (name.endsWith(".wasm") && typeof contents !== "string") wasm = contents;
        if (name.endsWith(".wat") && typeof contents === "string") text = contents;
      },
    },
  );
  if (error !== null || wasm === null || text === null) {
    throw new Error(`${entry} does not compile\n${messages}${error?.message ?? ""}`);
  }
  return { wasm, text };
}

/**
 * The interpreter's dispatch must be one jump table over all opcodes. AssemblyScript makes one only
 * of a dense, masked u32 operand; any other shape becomes a chain of comparisons, several times
 * slower, without a word. Nor may an accessor of the loop have stayed a call, which would spill
 * every register: the formatter removes @inline from functions, so inlining is left to the
 * optimiser.
 */
function checkDispatch(text: string, sources: Map<string, string>): string | null {
  const opcodes = sources.get("assembly/hart/opcodes.ts") ?? "";
  const opcodeCount = Number(/OP_FIRST_SLOW: u32 = (\d+);/.exec(opcodes)?.[1]);
  let largest = 0;
  for (const match of text.matchAll(/br_table((?:\s+\S*?\$\S+|\s+\d+)+)/g)) {
    largest = Math.max(largest, match[1]?.trim().split(/\s+/).length ?? 0);
  }
  if (largest < opcodeCount) {
    return `the dispatch is no jump table (largest br_table has ${largest} entries)`;
  }
  return checkCalls(text);
}

/** The dispatch loop calls nothing but the ways out, which nothing in it outlives. */
function checkCalls(text: string): string | null {
  const start = text.indexOf("(func $assembly/hart/interpreter/execute ");
  const body = text.slice(start, text.indexOf("\n (func", start));
  for (const match of body.matchAll(/call \$assembly\/hart\/(\S+)/g)) {
    const name = match[1] ?? "";
    if (!/^interpreter\/stop(Slow|Jump)$/.test(name)) {
      return `${name} is called from the dispatch loop`;
    }
  }
  return start < 0 ? "there is no dispatch loop" : null;
}

function readSources(folder: string, sources: Map<string, string>): void {
  let entries: Deno.DirEntry[];
  try {
    entries = [...Deno.readDirSync(new URL(`${folder}/`, HERE))];
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return;
    throw error;
  }
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory) readSources(path, sources);
    else if (entry.name.endsWith(".ts")) {
      sources.set(path, Deno.readTextFileSync(new URL(path, HERE)));
    }
  }
}

async function hashSources(target: Target, sources: Map<string, string>): Promise<string> {
  const parts = [COMPILER_VERSION, ...COMMON_OPTIONS, ...target.options];
  for (const [path, text] of sources) parts.push(path, text);
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(parts.join("\0")));
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The value of a plain constant of the layout, which is the one place that offsets are written. */
function readLayoutConstant(name: string): number {
  const layout = Deno.readTextFileSync(new URL("assembly/hart/layout.ts", HERE));
  const value = new RegExp(`export const ${name}: u32 = (0x[0-9a-f_]+);`).exec(layout)?.[1];
  if (value === undefined) throw new Error(`layout.ts has no plain constant ${name}`);
  return Number(value.replaceAll("_", ""));
}

function replaceFile(path: URL, bytes: Uint8Array): void {
  const temporary = new URL(`${path.href}.${Deno.pid}.${crypto.randomUUID()}`);
  Deno.writeFileSync(temporary, bytes);
  Deno.renameSync(temporary, path);
}

function readText(path: URL): string | null {
  try {
    return Deno.readTextFileSync(path);
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return null;
    throw error;
  }
}

function exists(path: URL): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return false;
    throw error;
  }
}
