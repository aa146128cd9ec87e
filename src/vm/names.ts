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
