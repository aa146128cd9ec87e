/**
 * Builds the guest programs below this folder with Debian's cross-compiler: each subfolder with a
 * `link.ld` becomes `NAME/NAME.elf`. The results are committed, since users have no cross-compiler;
 * `--check` builds aside and fails where a committed one differs from its source.
 *
 * @module
 */

const COMPILER = "riscv64-linux-gnu-gcc";
const FLAGS = [
  "-march=rv64imac_zicsr_zifencei",
  "-mabi=lp64",
  "-mcmodel=medany",
  "-O2",
  "-ffreestanding",
  "-fno-pic",
  "-fno-stack-protector",
  "-fno-asynchronous-unwind-tables",
  // The loops of memcpy and memset must not become calls of themselves.
  "-fno-tree-loop-distribute-patterns",
  "-nostdlib",
  "-static",
  "-Wall",
  "-Wextra",
  "-Werror",
  "-s",
  "-Wl,--build-id=none,--no-warn-rwx-segments,-z,max-page-size=4096",
];

/** Compiles the guest in `directory` to `output`. */
export async function buildGuest(directory: string, output: string): Promise<void> {
  const sources: string[] = [];
  for await (const entry of Deno.readDir(directory)) {
    if (/\.[cS]$/.test(entry.name)) sources.push(entry.name);
  }
  // A fixed order and relative names, so that the result depends on the sources alone.
  sources.sort((a, b) => Number(b === "start.S") - Number(a === "start.S") || (a < b ? -1 : 1));
  const { success, stderr } = await new Deno.Command(COMPILER, {
    args: [...FLAGS, "-Wl,-T,link.ld", "-o", output, ...sources],
    cwd: directory,
    stdout: "null",
    stderr: "piped",
  }).output();
  if (!success) throw new Error(`${directory}: ${new TextDecoder().decode(stderr)}`);
}

async function main(isCheck: boolean): Promise<number> {
  let differing = 0;
  for await (const entry of Deno.readDir(import.meta.dirname ?? ".")) {
    if (!entry.isDirectory) continue;
    const directory = `${import.meta.dirname}/${entry.name}`;
    const committed = `${directory}/${entry.name}.elf`;
    const output = isCheck ? await Deno.makeTempFile({ suffix: ".elf" }) : committed;
    try {
      await buildGuest(directory, output);
      const isSame = isCheck &&
        equalBytes(await Deno.readFile(output), await Deno.readFile(committed));
      if (isCheck && !isSame) differing++;
      print(
        `${entry.name}: ${
          isCheck ? (isSame ? "as its source" : "DIFFERS from its source") : "built"
        }`,
      );
    } finally {
      if (isCheck) await Deno.remove(output);
    }
  }
  return differing === 0 ? 0 : 1;
}

function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, index) => byte === b[index]);
}

function print(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(`${line}\n`));
}

if (import.meta.main) Deno.exit(await main(Deno.args.includes("--check")));
