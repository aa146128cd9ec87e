/**
 * Names that people choose, for machines, images, disks and fleecings. They become parts of paths
 * and URLs, so nothing in them needs an escape and none can leave its folder.
 *
 * @module
 */

/**
 * Lower-case letters, digits, `.`, `_`, `-`; starts with a letter or digit; at most 63 characters.
 */
export const NAME_PATTERN = /^[a-z0-9][a-z0-9._-]{0,62}$/;

/** What the pattern means, for people. */
export const NAME_RULE =
  "1 to 63 lower-case letters, digits, '.', '_' or '-', starting with a letter or digit";

/** An export's name: machine, disk and fleecing, joined with `-`. */
export const EXPORT_NAME_PATTERN = /^[a-z0-9][a-z0-9._-]{0,191}$/;

/** A disk's name: chosen, or machine and disk joined with `:`, which no chosen name has. */
export const DISK_NAME_PATTERN = /^[a-z0-9][a-z0-9._-]{0,62}(:[a-z0-9][a-z0-9._-]{0,62})?$/;

/** The name of a disk that is made with its machine. */
export function ownDiskName(machine: string, disk: string): string {
  return `${machine}:${disk}`;
}
