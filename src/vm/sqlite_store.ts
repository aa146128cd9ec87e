/**
 * The store in a SQLite file. One table of JSON documents; the write-ahead log with full
 * synchronisation, so that a change is on stable storage when its statement returns.
 *
 * Room is kept in both of its files for the changes to come: where guests have filled the file
 * system, a machine can still be deleted to make room.
 *
 * @module
 */

import { DatabaseSync, type StatementSync } from "node:sqlite";
import type {
  CheckpointRecord,
  Collection,
  DiskRecord,
  FleecingRecord,
  ImageRecord,
  MachineRecord,
  Store,
} from "./store.ts";

/** The version of the table below; a file of a newer one is refused. */
const SCHEMA_VERSION = 1;
/** Free pages of the database, and the length to which the log is grown: some hundred records. */
const RESERVED_BYTES = 256 * 1024;
/** The log goes back to its start, into the room that it has, after so many pages. */
const CHECKPOINT_PAGES = 16;

/** A store in the file at a path, or ":memory:". */
export class SqliteStore implements Store {
  /** Images, without their files. */
  readonly images: Collection<ImageRecord>;
  /** Machines, also those in the middle of being made or deleted. */
  readonly machines: Collection<MachineRecord>;
  /** Fleecings that stand now. */
  readonly fleecings: Collection<FleecingRecord>;
  /** Disks, also those in the middle of being made or deleted. */
  readonly disks: Collection<DiskRecord>;
  /** Checkpoints, also those whose bitmaps were lost. */
  readonly checkpoints: Collection<CheckpointRecord>;
  readonly #database: DatabaseSync;

  /** Makes the file where it is missing. Throws where a newer version wrote it. */
  /** Opens the file, or says why it can't be used. */
  static open(path: string): SqliteStore {
    try {
      return new SqliteStore(path);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new Error(`${path} can't be used: ${reason}`, { cause: error });
    }
  }

  private constructor(path: string) {
    this.#database = new DatabaseSync(path);
    this.#database.exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL");
    const version = Number(this.#database.prepare("PRAGMA user_version").get()?.user_version);
    if (version > SCHEMA_VERSION) {
      this.#database.close();
      throw new Error(`it was written by a newer Ovis (schema ${version})`);
    }
    this.#database.exec(`
      CREATE TABLE IF NOT EXISTS records (
        kind TEXT NOT NULL, name TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (kind, name)
      ) WITHOUT ROWID;
      PRAGMA user_version = ${SCHEMA_VERSION};
      PRAGMA wal_autocheckpoint = ${CHECKPOINT_PAGES};
      INSERT OR REPLACE INTO records VALUES ('reserve', '', zeroblob(${RESERVED_BYTES}));
      DELETE FROM records WHERE kind = 'reserve';
      PRAGMA wal_checkpoint`);
    this.images = new Records(this.#database, "image");
    this.machines = new Records(this.#database, "machine");
    this.fleecings = new Records(this.#database, "fleecing");
    this.disks = new Records(this.#database, "disk");
    this.checkpoints = new Records(this.#database, "checkpoint");
  }

  /** Closes the file; the write-ahead log is merged into it. */
  [Symbol.dispose](): void {
    this.#database.close();
  }
}

class Records<T> implements Collection<T> {
  readonly #kind: string;
  readonly #get: StatementSync;
  readonly #insert: StatementSync;
  readonly #put: StatementSync;
  readonly #remove: StatementSync;
  readonly #list: StatementSync;

  constructor(database: DatabaseSync, kind: string) {
    this.#kind = kind;
    this.#get = database.prepare("SELECT document FROM records WHERE kind = ? AND name = ?");
    this.#insert = database.prepare("INSERT OR IGNORE INTO records VALUES (?, ?, ?)");
    this.#put = database.prepare("INSERT OR REPLACE INTO records VALUES (?, ?, ?)");
    this.#remove = database.prepare("DELETE FROM records WHERE kind = ? AND name = ?");
    this.#list = database.prepare(
      "SELECT document FROM records WHERE kind = ? AND name > ? ORDER BY name LIMIT ?",
    );
  }

  get(name: string): T | undefined {
    const row = this.#get.get(this.#kind, name);
    return row === undefined ? undefined : JSON.parse(String(row.document)) as T;
  }

  insert(name: string, record: T): boolean {
    return this.#insert.run(this.#kind, name, JSON.stringify(record)).changes === 1;
  }

  put(name: string, record: T): void {
    this.#put.run(this.#kind, name, JSON.stringify(record));
  }

  remove(name: string): boolean {
    return this.#remove.run(this.#kind, name).changes === 1;
  }

  list(options: { after: string; limit: number }): T[] {
    return this.#list.all(this.#kind, options.after, options.limit)
      .map((row) => JSON.parse(String(row.document)) as T);
  }
}
