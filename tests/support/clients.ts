/**
 * Tests against real programs (qemu-img, nbdinfo, chromium, ...). Where one is not installed the
 * test is skipped and says so; with OVIS_REQUIRE_CLIENTS=1 (continuous integration) it fails
 * instead.
 *
 * @module
 */

/** The first of `candidates` that is a file (a path) or found on PATH (a name), or undefined. */
export function findProgram(...candidates: string[]): string | undefined {
  for (const name of candidates) {
    if (name.includes("/")) {
      if (isFile(name)) return name;
      continue;
    }
    for (const directory of (Deno.env.get("PATH") ?? "").split(":")) {
      if (isFile(`${directory}/${name}`)) return `${directory}/${name}`;
    }
  }
  return undefined;
}

function isFile(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

/**
 * Options for Deno.test: `Deno.test({ name, ...needs("qemu-img"), fn })`. Ignores the test, saying
 * so, where a program is missing and none are required.
 */
export function needs(...programs: string[]): { ignore: boolean } {
  const missing = programs.filter((program) => findProgram(program) === undefined);
  if (missing.length === 0 || Deno.env.get("OVIS_REQUIRE_CLIENTS") === "1") {
    return { ignore: false };
  }
  // deno-lint-ignore no-console
  console.log(`client not installed: skipped (${missing.join(", ")})`);
  return { ignore: true };
}
