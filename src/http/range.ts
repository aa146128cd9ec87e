/**
 * The Range header, RFC 9110 section 14. Single ranges are served; several at once are not: then
 * the header is ignored, as the standard allows, and the whole content is sent.
 *
 * @module
 */

/** What to send: everything, a part, or nothing because no part of the range exists. */
export type RangeChoice =
  | { kind: "whole" }
  | { kind: "part"; offset: number; length: number }
  | { kind: "unsatisfiable" };

/** What a Range header asks of a content of `size` bytes. */
export function chooseRange(header: string | null, size: number): RangeChoice {
  const match = /^bytes[ \t]*=[ \t]*(\d*)-(\d*)[ \t]*$/i.exec(header ?? "");
  if (match === null) return { kind: "whole" };
  const [, first = "", last = ""] = match;
  if (first === "" && last === "") return { kind: "whole" };
  if (first === "") {
    // The last so many bytes; more than there are means all.
    const length = Math.min(Number(last), size);
    return length === 0
      ? { kind: "unsatisfiable" }
      : { kind: "part", offset: size - length, length };
  }
  const offset = Number(first);
  if (last !== "" && Number(last) < offset) return { kind: "whole" };
  if (offset >= size) return { kind: "unsatisfiable" };
  const end = last === "" ? size : Math.min(Number(last) + 1, size);
  return { kind: "part", offset, length: end - offset };
}

/** Whether an If-None-Match or If-Match list (`isWeak`: by the weak comparison) holds `etag`. */
export function matchesEtag(header: string, etag: string, options: { isWeak: boolean }): boolean {
  if (header.trim() === "*") return true;
  return header.split(",").some((entry) => {
    const tag = entry.trim();
    return tag === etag || (options.isWeak && tag === `W/${etag}`);
  });
}
