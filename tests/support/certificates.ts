/**
 * Certificates for tests of TLS, made by openssl: a folder as qemu and nbdkit take it, with
 * ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem and client-key.pem.
 *
 * @module
 */

/** A folder of certificates, removed when it is disposed of. */
export interface Certificates extends AsyncDisposable {
  /** The folder. */
  directory: string;
  /** A file of it. */
  read: (name: string) => string;
}

/** Makes an authority, and a certificate of its for localhost for either side. */
export async function makeCertificates(): Promise<Certificates> {
  const directory = await Deno.makeTempDir();
  const openssl = async (...args: string[]) => {
    const { success, stderr } = await new Deno.Command("openssl", { args, cwd: directory })
      .output();
    if (!success) throw new Error(`openssl: ${new TextDecoder().decode(stderr)}`);
  };
  const newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  await openssl(
    ...["req", "-x509", ...newKey, "-keyout", "ca-key.pem", "-out", "ca-cert.pem", "-days", "2"],
    ...["-subj", "/CN=Test authority", "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
  );
  for (const side of ["server", "client"]) {
    await openssl(
      ...["req", ...newKey, "-keyout", `${side}-key.pem`, "-out", `${side}.csr`],
      ...["-subj", "/CN=localhost"],
    );
    await Deno.writeTextFile(
      `${directory}/extensions`,
      "basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n" +
        `extendedKeyUsage=${side}Auth\nkeyUsage=digitalSignature\n`,
    );
    await openssl(
      ...["x509", "-req", "-in", `${side}.csr`, "-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"],
      ...["-CAcreateserial", "-out", `${side}-cert.pem`, "-days", "2", "-extfile", "extensions"],
    );
  }
  return {
    directory,
    read: (name) => Deno.readTextFileSync(`${directory}/${name}`),
    [Symbol.asyncDispose]: () => Deno.remove(directory, { recursive: true }),
  };
}
