/** Images: what machines boot from. @module */

import type { z } from "@hono/zod-openapi";
import { limits } from "../../limits.ts";
import type { ImageInfo } from "../../vm/images.ts";
import type { Service } from "../../vm/service.ts";
import { checkAnnouncedLength } from "../body.ts";
import { readPage } from "../page.ts";
import { json, noContent, type Router } from "../router.ts";
import {
  ImageFileParams,
  ImageParams,
  ImageSchema,
  NewImageSchema,
  pageOf,
  PageQuery,
} from "../schemas.ts";

const tag = "Images";

/** Adds the routes. */
export function addImageRoutes(router: Router, service: Service): void {
  addListAndMake(router, service);
  addShowAndDelete(router, service);
  addUpload(router, service);
}

function addListAndMake(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/v1/images",
    tag,
    summary: "List images",
    query: PageQuery,
    answers: [{ status: 200, description: "By name", body: pageOf(ImageSchema) }],
    problems: [],
  }, ({ query }) =>
    json(readPage(query, {
      list: (options) => service.images.list(options),
      nameOf: ({ name }) => name,
      describe: describeImage,
    })));

  router.add({
    method: "post",
    path: "/v1/images",
    tag,
    summary: "Make an image",
    description: "It has no files yet: upload a kernel or a firmware before a machine boots it.",
    body: NewImageSchema,
    answers: [{ status: 201, description: "Made", body: ImageSchema }],
    problems: ["nameTaken"],
  }, ({ body }) => {
    const image = service.images.create(body.name, { cmdline: body.cmdline });
    return json(describeImage(image), {
      status: 201,
      headers: { location: `/v1/images/${image.name}` },
    });
  });
}

function addShowAndDelete(router: Router, service: Service): void {
  router.add({
    method: "get",
    path: "/v1/images/{image}",
    tag,
    summary: "Show an image",
    params: ImageParams,
    answers: [{ status: 200, description: "The image", body: ImageSchema }],
    problems: ["imageNotFound"],
  }, ({ params }) => json(describeImage(service.images.get(params.image))));

  router.add({
    method: "delete",
    path: "/v1/images/{image}",
    tag,
    summary: "Delete an image and its files",
    params: ImageParams,
    answers: [{ status: 204, description: "Gone" }],
    problems: ["imageNotFound", "imageInUse", "imageBuiltIn"],
  }, async ({ params }) => {
    const users = service.machines.usersOfImage(params.image);
    await service.images.remove(params.image, { users });
    return noContent();
  });
}

function addUpload(router: Router, service: Service): void {
  router.add({
    method: "put",
    path: "/v1/images/{image}/files/{part}",
    tag,
    summary: "Upload a file of an image",
    description: "`kernel`: a Linux Image, also gzip-compressed or EFI-zboot, or an ELF file. " +
      "`initrd`: handed to the kernel as it is. `firmware`: runs first, in M mode; without one " +
      "the SBI is built in. The file takes the place of an older one when it is complete and on " +
      "disk; a broken-off upload leaves nothing behind.",
    params: ImageFileParams,
    rawBody: `The file, at most ${limits.bootFileBytes} bytes`,
    answers: [{ status: 204, description: "Stored" }],
    problems: [
      "imageNotFound",
      "imageBuiltIn",
      "bodyBroken",
      "tooLarge",
      "outOfRange",
      "noSpace",
    ],
  }, async ({ request, params }) => {
    checkAnnouncedLength(request, limits.bootFileBytes);
    const body = request.body ?? ReadableStream.from<Uint8Array<ArrayBuffer>>([]);
    const { sha256 } = await service.images.putFile(params.image, params.part, body);
    return new Response(null, { status: 204, headers: { etag: `"${sha256}"` } });
  });
}

function describeImage(image: ImageInfo): z.input<typeof ImageSchema> {
  const { name, cmdline, createdAt, files, isBuiltIn } = image;
  return { name, cmdline, builtIn: isBuiltIn, createdAt, files };
}
