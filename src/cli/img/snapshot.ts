/**
 * `ovis img snapshot`: internal snapshots of an image: lists, makes, goes back to, forgets them.
 *
 * @module
 */

import { unfiltered } from "../../block/image/chain.ts";
import { Qcow2Node } from "../../block/qcow2/node.ts";
import type { Qcow2Snapshots } from "../../block/qcow2/snapshots.ts";
import type { Arguments } from "./args.ts";
import { ImgError, UsageError } from "./errors.ts";
import type { ImgCommand } from "./run.ts";
import {
  errorCodeText,
  errorMessage,
  FORCE_SHARE_OPTION,
  FORMAT_OPTION,
  type Image,
  IMAGE_OPTS_OPTION,
  ImgSession,
  onlyOperand,
  openOptionsOf,
  QUIET_OPTION,
} from "./session.ts";
import { formatSnapshots, type SnapshotInfo } from "./snapshot_list.ts";

/** See the module's head. */
export const command: ImgCommand = {
  syntax: {
    usage: "[-f FMT | --image-opts] [-l | -a SNAPSHOT | -c SNAPSHOT | -d SNAPSHOT] [-U] [-q]\n" +
      "        FILENAME",
    options: [
      QUIET_OPTION,
      FORMAT_OPTION,
      IMAGE_OPTS_OPTION,
      FORCE_SHARE_OPTION,
      { name: "list", short: "l", help: "list the snapshots (the default)" },
      { name: "create", short: "c", value: "SNAPSHOT", help: "keep the disk as it is" },
      { name: "apply", short: "a", value: "SNAPSHOT", help: "make the disk what it was" },
      { name: "delete", short: "d", value: "SNAPSHOT", help: "forget a snapshot" },
    ],
  },
  run: async (args, output) => {
    const { action, name } = actionOf(args);
    const filename = onlyOperand(args);
    const options = { ...openOptionsOf(args), isWritable: action !== "list" };
    await ImgSession.run(async (session) => {
      const image = await session.open(filename, options);
      if (action === "list") {
        const listed = (image.node.imageDetails["snapshots"] ?? []) as SnapshotInfo[];
        if (listed.length === 0) return;
        output.print(["Snapshot list:", ...formatSnapshots(listed), ""].join("\n"));
      } else await change(image, action, name);
    });
    return 0;
  },
};

type Action = "list" | "create" | "apply" | "delete";

function actionOf(args: Arguments): { action: Action; name: string } {
  const given = args.options.filter((option) =>
    ["list", "create", "apply", "delete"].includes(option.name)
  );
  if (given.length > 1) throw new UsageError("Cannot mix '-l', '-a', '-c', '-d'");
  const [option] = given;
  return { action: (option?.name ?? "list") as Action, name: option?.value ?? "" };
}

async function change(image: Image, action: Action, name: string): Promise<void> {
  const node = unfiltered(image.node);
  const snapshots = node instanceof Qcow2Node ? node.snapshots : null;
  switch (action) {
    case "create":
      return await create(snapshots, name);
    case "apply":
      return await apply(snapshots, name);
    default:
      return await forget(snapshots, name);
  }
}

async function create(snapshots: Qcow2Snapshots | null, name: string): Promise<void> {
  if (snapshots === null) {
    throw new ImgError(`Could not create snapshot '${name}': Operation not supported`);
  }
  try {
    await snapshots.create({ name, dateMs: Date.now() });
  } catch (error) {
    throw new ImgError(`Could not create snapshot '${name}': ${errorCodeText(error)}`, 1, {
      cause: error,
    });
  }
}

async function apply(snapshots: Qcow2Snapshots | null, name: string): Promise<void> {
  const found = snapshots?.find(name);
  if (snapshots === null || found === undefined) {
    const reason = snapshots === null ? "Block format does not support snapshots" : NOT_FOUND;
    throw new ImgError(`Could not apply snapshot '${name}': ${reason}`);
  }
  try {
    await snapshots.apply(found.id);
  } catch (error) {
    throw new ImgError(`Could not apply snapshot '${name}': ${errorMessage(error)}`, 1, {
      cause: error,
    });
  }
}

const NOT_FOUND = "Failed to load snapshot: No such file or directory";

/** By name alone, as qemu-img. */
async function forget(snapshots: Qcow2Snapshots | null, name: string): Promise<void> {
  const found = snapshots?.list().find((snapshot) => snapshot.name === name);
  if (snapshots === null || found === undefined) {
    throw new ImgError(`Could not delete snapshot '${name}': snapshot not found`);
  }
  try {
    await snapshots.remove(found.id);
  } catch (error) {
    throw new ImgError(`Could not delete snapshot '${name}': ${errorMessage(error)}`, 1, {
      cause: error,
    });
  }
}
