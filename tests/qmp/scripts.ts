/**
 * What the monitors of QEMU and Ovis are asked in the comparison: see qemu_test.ts.
 *
 * @module
 */

import type { Script } from "../support/qmp_sides.ts";
import { blockdevScripts } from "./scripts_blockdev.ts";
import { bitmapScripts } from "./scripts_bitmap.ts";
import { chainScripts } from "./scripts_chain.ts";
import { exportScripts } from "./scripts_export.ts";
import { inputScripts } from "./scripts_input.ts";
import { jobScripts } from "./scripts_job.ts";

/** All scripts by name. */
export const scripts: Readonly<Record<string, Script>> = {
  ...inputScripts,
  ...blockdevScripts,
  ...bitmapScripts,
  ...exportScripts,
  ...jobScripts,
  ...chainScripts,
};
