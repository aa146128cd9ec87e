/**
 * What a job holds of a node: a backend that stays with this very node when filters are put above.
 *
 * @module
 */

import { BlockBackend } from "../backend.ts";

/** See the module's head. */
export class JobBackend extends BlockBackend {}
