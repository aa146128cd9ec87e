/** Paths beside the runtime's own functions for them, which count as right. */

import { assertEquals } from "@std/assert";
import fc from "fast-check";
import { posix } from "node:path";
import { absolutePath, baseName, folderName, joinPath } from "../../src/block/paths.ts";

/** Paths of few different pieces, so that the odd ones come often. */
const paths = fc.array(fc.constantFrom("/", "//", ".", "..", "a", "bc", ".d", "e."), {
  maxLength: 8,
}).map((pieces) => pieces.join(""));

Deno.test("paths are taken apart and joined as node:path does", () => {
  fc.assert(fc.property(paths, paths, (one, two) => {
    // How many slashes stand between names means nothing.
    const [folderOfOne, expected] = [folderName(one), posix.dirname(one)].map(posix.normalize);
    assertEquals(folderOfOne, expected, `folderName(${JSON.stringify(one)})`);
    assertEquals(baseName(one), posix.basename(one), `baseName(${JSON.stringify(one)})`);
    assertEquals(absolutePath(one), posix.resolve(one), `absolutePath(${JSON.stringify(one)})`);
    // An empty folder is the root here: nobody has one.
    const folder = one === "" ? "." : one;
    const joined = posix.join(folder, two).replace(/(.)\/+$/, "$1");
    assertEquals(joinPath(folder, two), joined, `joinPath(${JSON.stringify([folder, two])})`);
  }));
});
