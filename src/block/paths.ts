/**
 * Paths of files, POSIX alone. The runtime's node:path takes 8 ms to load where nothing else of
 * Node is used.
 *
 * @module
 */

/** Whether a path starts at the root. */
export function isAbsolutePath(path: string): boolean {
  return path.startsWith("/");
}

/** The folder of what a path names, "." where it names none. */
export function folderName(path: string): string {
  const trimmed = path.replace(/\/+$/, "");
  if (trimmed === "") return path === "" ? "." : "/";
  const slash = trimmed.lastIndexOf("/");
  if (slash < 0) return ".";
  return trimmed.slice(0, slash) || "/";
}

/** The last name of a path. */
export function baseName(path: string): string {
  const trimmed = path.replace(/\/+$/, "");
  return trimmed.slice(trimmed.lastIndexOf("/") + 1);
}

/** A path meant from a folder, without `.`, `..` and double slashes. */
export function joinPath(folder: string, path: string): string {
  const whole = `${folder}/${path}`;
  const isAbsolute = isAbsolutePath(whole);
  const names: string[] = [];
  for (const name of whole.split("/")) {
    if (name === "" || name === ".") continue;
    if (name === ".." && names.length > 0 && names.at(-1) !== "..") names.pop();
    else if (name !== ".." || !isAbsolute) names.push(name);
  }
  const joined = `${isAbsolute ? "/" : ""}${names.join("/")}`;
  return joined === "" ? "." : joined;
}

/** A path from the root on, meant from the current folder. */
export function absolutePath(path: string): string {
  return isAbsolutePath(path) ? joinPath("/", path) : joinPath(Deno.cwd(), path);
}
