/**
 * The error of everything that fetches or makes images.
 *
 * @module
 */

/** An image could not be fetched or made: bad archive, mirror out of reach, checksum wrong. */
export class ImageError extends Error {
  /** What stands before the message when it is printed. */
  override readonly name = "ImageError";
}
