// `cml pki init`, `guestos sign | verify`, `container sign` as a developer calls them; openssl has the last word.
import { afterAll, beforeAll, expect, test } from "bun:test";
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { addCertificate, SOFTHSM, softhsm } from "../../test/softhsm.ts";

const dir = mkdtempSync(join(tmpdir(), "sign-"));
const at = (...parts: string[]) => join(dir, ...parts);
const conf = at("dmos-1.conf");
afterAll(() => rmSync(dir, { recursive: true }));

const cml = (...args: string[]) => cmlWith({}, ...args);
async function cmlWith(
  env: Record<string, string>,
  ...args: string[]
): Promise<{ status: number; out: string; err: string }> {
  const ran = Bun.spawn([process.execPath, "src/main.ts", ...args], {
    stdin: "ignore",
    stderr: "pipe",
    env: { ...process.env, ...env },
  });
  const [out, err] = await Promise.all([ran.stdout.text(), ran.stderr.text()]);
  return { status: await ran.exited, out, err };
}

beforeAll(async () => {
  copyFileSync("test/data/signing/dmos-1.conf", conf);
  expect((await cml("pki", "init", "--key", "ec:P-256", at("pki"))).status).toBe(0);
});

test("the PKI has the original's names, and keys that only their owner reads", () => {
  const names = readdirSync(at("pki"));
  for (const name of [
    "ssig_rootca",
    "ssig_cml",
    "ssig_subca_cml",
    "ssig",
    "gen_rootca",
    "device_subca",
    "backend",
  ])
    expect(names).toEqual(expect.arrayContaining([`${name}.key`, `${name}.cert`]));
  for (const name of names.filter((n) => n.endsWith(".key")))
    expect(statSync(at("pki", name)).mode & 0o777).toBe(0o600);
});

test("a PKI that is there is kept; a link is refused", async () => {
  const before = readFileSync(at("pki/ssig_cml.key"));
  expect(await cml("pki", "init", at("pki"))).toMatchObject({
    status: 0,
    out: `${at("pki")}: it is there already, nothing changed\n`,
  });
  expect(readFileSync(at("pki/ssig_cml.key"))).toEqual(before);
  symlinkSync(at("elsewhere"), at("link"));
  const refused = await cml("pki", "init", "--key", "ec:P-256", at("link"));
  expect(refused).toMatchObject({
    status: 1,
    err: `pki: ${at("link")}: a symbolic link; keys are made in real folders only\n`,
  });
  expect(existsSync(at("elsewhere"))).toBe(false);
});

test("what is there and no PKI is said to be none", async () => {
  mkdirSync(at("empty"));
  for (const [name, why] of [
    ["empty", "a folder without a PKI is there; name one that is not"],
    ["dmos-1.conf", "not a folder"],
  ] as const)
    expect(await cml("pki", "init", at(name))).toEqual({
      status: 1,
      out: "",
      err: `pki: ${at(name)}: ${why}\n`,
    });
});

test("a PKI that lacks something is not said to be fine", async () => {
  const pki = at("lost");
  expect((await cml("pki", "init", "--key", "ec:P-256", pki)).status).toBe(0);
  rmSync(join(pki, "ssig_cml.key"));
  rmSync(join(pki, "backend.cert"));
  writeFileSync(join(pki, "gen_rootca.cert"), "");
  copyFileSync(at("pki/ssig.key"), join(pki, "ssig.key"));
  writeFileSync(join(pki, "user_subca.key"), "no key");
  expect(await cml("pki", "init", pki)).toEqual({
    status: 1,
    out: "",
    err:
      `pki: ${pki}: a PKI that is not whole: ssig.key is not the key of its certificate, ssig_cml.key is missing, ` +
      "gen_rootca.key or its certificate cannot be read, gen_rootca.cert is empty, user_subca.key or its certificate cannot be read, " +
      "backend.cert is missing; bring it back, or name another folder\n",
  });
});

test("interrupted, it leaves no keys behind", async () => {
  const place = at("interrupted");
  mkdirSync(place);
  const ran = Bun.spawn([process.execPath, "src/main.ts", "pki", "init", join(place, "pki")], {
    stderr: "pipe",
  });
  for await (const said of ran.stderr) {
    if (!Buffer.from(said).includes("2 of 11")) continue; // a key is there
    ran.kill("SIGINT");
    break;
  }
  expect(await ran.exited).toBe(130);
  expect(readdirSync(place)).toEqual([]);
}, 60_000);

test("what is judged is what is parsed: the file is read once", async () => {
  const pair = ["sig", "cert"].map((end) => `test/data/signing/dmos-1.${end}`);
  const ca = ["--ca", "test/data/signing/ssig_rootca.cert"];
  const words = ["guestos", "verify", ...ca, "/dev/stdin", ...pair];
  const ran = Bun.spawn(
    ["sh", "-c", 'cat "$0" | exec "$@"', conf, process.execPath, "src/main.ts", ...words],
    {
      stderr: "pipe",
    },
  );
  expect({ err: await ran.stderr.text(), status: await ran.exited }).toEqual({ err: "", status: 0 });
});

test("a word too many is refused, not passed over: `sign *.conf` would sign one of them", async () => {
  const key = ["--key", at("pki/ssig_cml.key"), "--cert", at("pki/ssig_cml.cert")];
  for (const tool of ["guestos", "container"])
    expect(await cml(tool, "sign", ...key, at("a-1.conf"), at("b-1.conf"))).toEqual({
      status: 255,
      out: "",
      err: `${tool}: ${at("b-1.conf")}: one word too many\n`,
    });
  expect((await cml("guestos", "sign", ...key, "--", at("a-1.conf"), "-b")).err).toBe(
    "guestos: -b: one word too many\n",
  );
  expect((await cml("guestos", "verify", "--CA", at("pki/ssig_rootca.cert"), conf)).err).toBe(
    "guestos: --CA: no such option\n",
  );
});

test("what has no end is not read to it", async () => {
  const roots = ["guestos", "verify", "--ca", at("pki/ssig_rootca.cert")];
  const { status, err } = await cml(...roots, "/dev/zero", at("dmos-1.sig"), at("dmos-1.cert"));
  expect({ status, err }).toEqual({ status: 2, err: "guestos: /dev/zero: more than 67108864 bytes\n" });
});

test("a folder in a file's place is named", async () => {
  const key = (cert: string) => ["--key", at("pki/ssig_cml.key"), "--cert", cert, conf];
  const { status, err } = await cml("guestos", "sign", ...key(at("pki")));
  expect({ status, err }).toEqual({ status: 1, err: `guestos: ${at("pki")}: a folder, not a file\n` });
});

test("signed here, verified here and by openssl", async () => {
  const signed = await cml(
    "guestos",
    "sign",
    `--key=${at("pki/ssig_cml.key")}`,
    `--cert=${at("pki/ssig_cml.cert")}`,
    conf,
  );
  expect(signed).toEqual({ status: 0, out: `${at("dmos-1.sig")}\n${at("dmos-1.cert")}\n`, err: "" });
  const good = await cml("guestos", "verify", "--ca", at("pki/ssig_rootca.cert"), conf);
  expect(good.status).toBe(0);
  expect(good.out).toStartWith(`${conf}: SIGNED: CN=GyroidOS CML Signing Certificate,`);
  const pub = Bun.spawnSync(["openssl", "x509", "-in", at("dmos-1.cert"), "-noout", "-pubkey"]).stdout;
  writeFileSync(at("pub"), pub);
  const theirs = Bun.spawnSync([
    "openssl",
    "dgst",
    "-sha512",
    "-verify",
    at("pub"),
    "-signature",
    at("dmos-1.sig"),
    conf,
  ]);
  expect(theirs.stdout.toString()).toBe("Verified OK\n");
});

test("inspect names the signer, or nobody", async () => {
  const by = "signed by    CN=GyroidOS CML Signing Certificate,OU=Development,O=OSS Release,C=DE";
  expect((await cml("guestos", "inspect", conf)).out).toContain(by);
  copyFileSync(conf, at("alone-1.conf"));
  expect((await cml("guestos", "inspect", at("alone-1.conf"))).out).toContain("signed by    nobody");
});

test("inspect and verify: what somebody else has written does nothing to the terminal, and stays in its line", async () => {
  const evil = at("evil-1.conf");
  const words = "\\033[2Ja\\nb\\u009b1m";
  const text = readFileSync(conf, "utf8").replace(/init_path: .*/, `init_path: "/init${words}"`);
  writeFileSync(evil, text.replace(/name: .*/, 'name: "\\033]0;x\\007"'));
  const { out: shown } = await cml("guestos", "inspect", evil);
  expect(shown).toContain("/init\\x1b[2Ja\\nb\\x9b1m");
  expect(shown).toContain("problem: ");
  expect(shown).not.toMatch(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/);
});

test("verify: 0 good, 1 refused with the reason, 2 usage or a file that is not there", async () => {
  const verify = (...args: string[]) => cml("guestos", "verify", ...args);
  const original = "test/data/signing/ssig_rootca.cert";
  const files = ["conf", "sig", "cert"].map((e) => `test/data/signing/dmos-1.${e}`);
  expect((await verify("--ca", original, ...files)).status).toBe(0);
  const refused = await verify("--ca", original, conf);
  expect(refused.status).toBe(1);
  expect(refused.err).toContain("unable to get local issuer certificate");
  expect((await verify("--local-ca", original, ...files)).out).toContain(": LOCALLY_SIGNED: ");
  expect(await verify(conf)).toMatchObject({
    status: 2,
    err: "guestos: whom to believe: --ca FILE or --local-ca FILE\n",
  });
  expect((await verify("--ca", at("nobody"), conf)).status).toBe(2);
  expect((await verify("--ca", original, conf, "--colour")).status).toBe(2);
});

test("what could not be said is no success: a full disk, a closed descriptor", async () => {
  const files = ["conf", "sig", "cert"].map((e) => `test/data/signing/dmos-1.${e}`);
  const verify = ["guestos", "verify", "--ca", "test/data/signing/ssig_rootca.cert", ...files];
  const inspect = ["guestos", "inspect", files[0]!];
  const shell = async (redirection: string, words: readonly string[]) => {
    const script = ["sh", "-c", `exec "$@" ${redirection}`, "sh"];
    const ran = Bun.spawn([...script, process.execPath, "src/main.ts", ...words], { stderr: "pipe" });
    return [await ran.stderr.text(), await ran.exited];
  };
  const full = "guestos: standard output: ENOSPC: no space left on device, write\n";
  expect(await shell(">/dev/full", verify)).toEqual([full, 2]);
  expect(await shell(">/dev/full", ["guestos", "--help"])).toEqual([full, 1]);
  expect(await shell(">/dev/full", inspect)).toEqual([full, 1]);
  expect(await shell(">&-", verify)).toEqual(["guestos: standard output is closed\n", 2]);
  expect(await shell(">&-", inspect)).toEqual(["guestos: standard output is closed\n", 1]);
  expect(await shell(">/dev/null", verify)).toEqual(["", 0]);
  expect(await shell("</dev/null 1<>/dev/null", verify)).toEqual(["", 0]);
});

test("a certificate file whose last line has no end, and another after it", async () => {
  const [leaf, sub] = ["ssig_cml", "ssig_subca_cml"].map((name) => {
    const [first] = readFileSync(at(`pki/${name}.cert`), "utf8").split(/(?<=-----END CERTIFICATE-----)/);
    writeFileSync(at(`${name}.bare`), first!);
    return at(`${name}.bare`);
  }) as [string, string];
  const key = at("pki/ssig_cml.key");
  const signed = await cml("guestos", "sign", "--key", key, "--cert", leaf, "--cert", sub, conf);
  expect(signed).toMatchObject({ status: 0, err: "" });
  expect((await cml("guestos", "verify", "--ca", at("pki/ssig_rootca.cert"), conf)).status).toBe(0);
});

test("a key that is not the certificate's, and a configuration that is none, sign nothing", async () => {
  const other = at("other-1.conf");
  copyFileSync("test/data/signing/plainos-1.conf", other);
  const wrong = await cml(
    "guestos",
    "sign",
    "--key",
    at("pki/ssig.key"),
    "--cert",
    at("pki/ssig_cml.cert"),
    other,
  );
  expect(wrong.status).toBe(1);
  expect(wrong.err).toBe(
    `guestos: ${at("pki/ssig.key")}: it is not the key of the first certificate in ${at("pki/ssig_cml.cert")}\n`,
  );
  writeFileSync(other, "name: ");
  const broken = await cml(
    "container",
    "sign",
    "--key",
    at("pki/ssig.key"),
    "--cert",
    at("pki/ssig.cert"),
    other,
  );
  expect(broken.status).toBe(1);
  expect(existsSync(at("other-1.sig"))).toBe(false);
});

test("a container's configuration is signed the same way", async () => {
  const box = at("box.conf");
  writeFileSync(box, 'name: "box"\nguest_os: "dmos"\n');
  const signed = await cml(
    "container",
    "sign",
    "--key",
    at("pki/ssig.key"),
    "--cert",
    at("pki/ssig.cert"),
    box,
  );
  expect(signed).toMatchObject({ status: 0, out: `${at("box.sig")}\n${at("box.cert")}\n` });
  expect(Bun.file(at("box.sig")).size).toBeGreaterThan(60);
});

test("a key that never leaves its token signs, by its PKCS #11 URI: RSA with PSS, and ECDSA", async () => {
  const pin = "71-PIN-71";
  using token = softhsm("developers", pin);
  const env = { SOFTHSM2_CONF: token.config };
  expect((await cml("pki", "init", "--key", "rsa:2048", at("rsa"))).status).toBe(0);
  const keys = [
    ["elliptic", at("pki/ssig_cml"), at("pki/ssig_rootca.cert")],
    ["rsa", at("rsa/ssig"), at("rsa/ssig_rootca.cert")],
  ] as const;
  for (const [i, [label, files, root]] of keys.entries()) {
    const words = ["--token", "developers", "--label", label, "--id", `0${i}`, "--pin", pin];
    const imported = Bun.spawnSync(["softhsm2-util", "--import", `${files}.key`, ...words], {
      env: { ...process.env, ...env },
    });
    expect(imported.stderr.toString()).toBe("");
    const uri = `pkcs11:token=developers;object=${label}?module-path=${SOFTHSM}`;
    const sign = ["guestos", "sign", "--key", uri, "--cert", `${files}.cert`, conf];
    expect(await cmlWith({ ...env, GYROIDOS_TEST_PASSWD_PKI: pin }, ...sign)).toMatchObject({
      status: 0,
      err: "",
    });
    expect((await cml("guestos", "verify", "--ca", root, conf)).status).toBe(0);
    const wrong = await cmlWith({ ...env, GYROIDOS_TEST_PASSWD_PKI: "wrong" }, ...sign);
    expect([wrong.status, wrong.err]).toEqual([
      1,
      expect.stringContaining("no such private key, or not with this PIN"),
    ]);
    expect(wrong.err).not.toContain(pin);
  }
}, 30_000);

test("certificates that lie in a token, by their PKCS #11 URIs: the signer's beside its key, an intermediate, a file", async () => {
  const pin = "71-PIN-71";
  using token = softhsm("developers", pin);
  const env = { SOFTHSM2_CONF: token.config, GYROIDOS_TEST_PASSWD_PKI: pin };
  const words = ["--token", "developers", "--label", "cml", "--id", "01", "--pin", pin];
  const imported = Bun.spawnSync(["softhsm2-util", "--import", at("pki/ssig_cml.key"), ...words], {
    env: { ...process.env, ...env },
  });
  expect(imported.stderr.toString()).toBe("");
  for (const [id, label, name] of [
    [1, "cml", "ssig_cml"],
    [2, "sub", "ssig_subca_cml"],
  ] as const)
    addCertificate(token.config, "developers", pin, label, id, readFileSync(at(`pki/${name}.cert`), "utf8"));
  const uri = (object: string) => `pkcs11:token=developers;object=${object}?module-path=${SOFTHSM}`;
  const sign = (tool: string, file: string, ...certs: string[]) =>
    cmlWith(env, tool, "sign", "--key", uri("cml"), ...certs.flatMap((c) => ["--cert", c]), file);
  const box = at("tokenbox.conf");
  writeFileSync(box, 'name: "tokenbox"\nguest_os: "dmos"\n');
  for (const [tool, file] of [
    ["guestos", conf],
    ["container", box],
  ] as const)
    for (const between of [uri("sub"), at("pki/ssig_subca_cml.cert")]) {
      rmSync(file.replace(/conf$/, "cert"), { force: true });
      expect(await sign(tool, file, uri("cml"), between)).toMatchObject({ status: 0, err: "" });
      const judged = await cml("guestos", "verify", "--ca", at("pki/ssig_rootca.cert"), conf);
      expect(judged.status).toBe(0);
      const both = readFileSync(at("pki/ssig_cml.cert"), "utf8"); // leaf and intermediate, as the PKI bundles them
      expect(readFileSync(file.replace(/conf$/, "cert"), "utf8").replace(/\s/g, "")).toBe(
        both.replace(/\s/g, ""),
      );
    }
  const other = async (cert: string) => (await sign("guestos", conf, cert)).err;
  expect(await other("pkcs11:object=x?module-path=/no/such.so")).toBe(
    "guestos: /no/such.so: no such PKCS #11 module\n",
  );
  expect(await other("pkcs11:object=%zz")).toStartWith('guestos: pkcs11:object=%zz: a "%" without');
  expect(await other("")).toBe("guestos: a file without a name\n");
  const none = await sign("guestos", conf, uri("nobody"));
  expect(none.status).toBe(1);
  expect(none.err).toContain("guestos: pkcs11:token=developers;object=nobody: no such certificate");
  const another = await sign("guestos", conf, uri("sub"));
  expect(another.err).toContain(`it is not the key of the first certificate in ${uri("sub")}`);
}, 30_000);
