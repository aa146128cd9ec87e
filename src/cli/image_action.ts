/** What `ovis image pull debian` does. @module */

import { join } from "node:path";
import { defaultDataPath } from "../config.ts";
import { aptMirror, DEBIAN_KEYRING } from "../image/debian_archive.ts";
import { type ImageFiles, makeDebianImage } from "../image/debian_image.ts";
import { ImageError } from "../image/errors.ts";
import { DataFolder, FolderInUseError } from "../vm/data_folder.ts";
import { Images } from "../vm/images.ts";
import { NAME_PATTERN, NAME_RULE } from "../vm/names.ts";
import { SqliteStore } from "../vm/sqlite_store.ts";
import { ClientError, openClient } from "./client.ts";
import { printError, printLine } from "./output.ts";
import { Progress } from "./progress.ts";

/** The command's options. */
export interface PullOptions {
  /** Of the image in the service. */
  name: string;
  /** Debian's release: "trixie". */
  suite: string;
  /** Address of a Debian mirror; without it the one that apt is set to. */
  mirror?: string;
  /** File of the keys that may sign the release; without it DEBIAN_KEYRING. */
  keyring?: string;
  /** The data folder; without it OVIS_DATA, else the default. */
  data?: string;
  /** The service that gets the image where one holds the folder; without it OVIS_URL. */
  url?: string;
  /** That service's token; without it OVIS_TOKEN, else the data folder's. */
  token?: string;
}

/** Where an image goes. */
interface ImageSink {
  create(name: string, cmdline: string): Promise<void>;
  put(name: string, part: "kernel" | "initrd", bytes: Uint8Array<ArrayBuffer>): Promise<void>;
}

/** Makes the image and stores it. */
export async function pullDebian(options: PullOptions): Promise<void> {
  if (!NAME_PATTERN.test(options.name)) {
    throw new ImageError(`--name ${options.name}: a name is ${NAME_RULE}`);
  }
  const image = await fetchDebian(options);
  const dataPath = options.data ?? Deno.env.get("OVIS_DATA") ??
    defaultDataPath((name) => Deno.env.get(name));
  try {
    using folder = await DataFolder.open(dataPath);
    using store = SqliteStore.open(folder.storePath);
    await storeImage(options.name, image, folderSink(await Images.open(folder, store, [])));
  } catch (error) {
    if (!(error instanceof FolderInUseError)) throw error;
    await storeImage(options.name, image, await serviceSink(options));
  }
  printLine(`image ${options.name}: ${image.description}`);
  printLine(`start a machine of it: ovis vm create NAME --image ${options.name}`);
}

/** Fetches and makes the image, showing progress. */
export async function fetchDebian(
  options: Pick<PullOptions, "suite" | "mirror" | "keyring">,
): Promise<ImageFiles> {
  const progress = new Progress();
  try {
    return await makeDebianImage({
      mirror: options.mirror?.replace(/\/$/, "") ?? await aptMirror(),
      suite: options.suite,
      architecture: "riscv64",
      keyring: options.keyring ?? DEBIAN_KEYRING,
      cacheDirectory: join(cacheHome(), "ovis", "debian"),
      onProgress: (step, done, total) => progress.report(step, done, total),
      onWarning: printError,
    });
  } finally {
    progress.end();
  }
}

function cacheHome(): string {
  return Deno.env.get("XDG_CACHE_HOME") ?? join(Deno.env.get("HOME") ?? ".", ".cache");
}

async function storeImage(name: string, image: ImageFiles, sink: ImageSink): Promise<void> {
  await sink.create(name, image.cmdline);
  await sink.put(name, "initrd", image.initrd);
  await sink.put(name, "kernel", image.kernel);
}

function folderSink(images: Images): ImageSink {
  return {
    // deno-lint-ignore require-await
    async create(name, cmdline) {
      if (images.find(name) === undefined) images.create(name, { cmdline });
    },
    async put(name, part, bytes) {
      await images.putFile(name, part, new Blob([bytes]).stream());
    },
  };
}

async function serviceSink(options: { url?: string; token?: string }): Promise<ImageSink> {
  const client = await openClient(options);
  return {
    async create(name, cmdline) {
      try {
        await client.call("POST", "/v1/images", { name, cmdline });
      } catch (error) {
        if (!(error instanceof ClientError && error.code === "nameTaken")) throw error;
      }
    },
    async put(name, part, bytes) {
      const path = `/v1/images/${encodeURIComponent(name)}/files/${part}`;
      await client.request("PUT", path, { body: bytes });
    },
  };
}
