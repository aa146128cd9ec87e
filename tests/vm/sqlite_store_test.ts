import { assertEquals, assertThrows } from "@std/assert";
import { DatabaseSync } from "node:sqlite";
import { SqliteStore } from "../../src/vm/sqlite_store.ts";
import type { ImageRecord } from "../../src/vm/store.ts";

const image = (name: string): ImageRecord => ({ name, cmdline: "", createdAt: "", files: {} });

Deno.test("SqliteStore keeps records over a reopening", async () => {
  const path = await Deno.makeTempFile();
  try {
    {
      using store = SqliteStore.open(path);
      assertEquals(store.images.insert("b", image("b")), true);
      assertEquals(store.images.insert("b", { ...image("b"), cmdline: "x" }), false);
      store.images.put("a", image("a"));
      store.images.put("c", image("c"));
      store.images.put("c", { ...image("c"), cmdline: "changed" });
      assertEquals(store.machines.get("a"), undefined);
    }
    using store = SqliteStore.open(path);
    const names = (after: string, limit: number) =>
      store.images.list({ after, limit }).map(({ name }) => name);
    assertEquals(names("", 9), ["a", "b", "c"]);
    assertEquals(names("a", 1), ["b"]);
    assertEquals(store.images.get("c")?.cmdline, "changed");
    assertEquals(store.images.get("b")?.cmdline, "");
    assertEquals([store.images.remove("b"), store.images.remove("b")], [true, false]);
  } finally {
    for (const suffix of ["", "-wal", "-shm"]) await Deno.remove(path + suffix).catch(() => {});
  }
});

Deno.test("SqliteStore refuses a file of a newer version", async () => {
  const path = await Deno.makeTempFile();
  try {
    const database = new DatabaseSync(path);
    database.exec("PRAGMA user_version = 99");
    database.close();
    assertThrows(() => SqliteStore.open(path), Error, "newer");
  } finally {
    for (const suffix of ["", "-wal", "-shm"]) await Deno.remove(path + suffix).catch(() => {});
  }
});
