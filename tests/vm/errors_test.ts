import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { DatabaseSync } from "node:sqlite";
import { BlockError } from "../../src/block/errors.ts";
import { ServiceError, toServiceError } from "../../src/vm/errors.ts";

Deno.test("toServiceError() maps what carries an errno and leaves bugs alone", async () => {
  const codeOf = (error: unknown) => {
    const mapped = toServiceError(error);
    return mapped instanceof ServiceError ? mapped.code : null;
  };
  assertEquals(codeOf(new BlockError("EACCES", "no")), "rangeForbidden");
  assertEquals(codeOf(new BlockError("ETIMEDOUT", "late")), "timedOut");
  assertEquals(codeOf(new ServiceError("nameTaken", "taken")), "nameTaken");
  assertEquals(codeOf(new TypeError("a bug")), null);
  assertEquals(codeOf("text"), null);
  assertEquals(codeOf(Object.assign(new Error("x"), { code: "toString" })), null);
  using full = await Deno.open("/dev/full", { write: true });
  const noSpace = await assertRejects(() => full.write(new Uint8Array(1)));
  assertEquals(codeOf(noSpace), "noSpace");
});

Deno.test("toServiceError() knows a file that its file system does not allow", () => {
  assertEquals(
    (toServiceError(new Error("File too large (os error 27)")) as ServiceError).code,
    "noSpace",
  );
});

Deno.test("toServiceError() knows a database that can't grow", () => {
  const database = new DatabaseSync(":memory:");
  database.exec("PRAGMA max_page_count = 2; CREATE TABLE t (x)");
  const insert = database.prepare("INSERT INTO t VALUES (zeroblob(100000))");
  const full = assertThrows(() => insert.run());
  database.close();
  assertEquals((toServiceError(full) as ServiceError).code, "noSpace");
});

Deno.test("toServiceError() keeps the forbidden range", () => {
  const error = Object.assign(new BlockError("EACCES", "no"), {
    range: { offset: 1, length: 2 },
  });
  assertEquals((toServiceError(error) as ServiceError).range, { offset: 1, length: 2 });
});
