/** x @module */
import type { ImgCommand } from "./run.ts";
/** x */
export const command: ImgCommand = { syntax: { usage: "", options: [] }, run: () => 1 };
