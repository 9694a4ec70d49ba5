// A person at the gate's own pages, in a real headless Chromium without JavaScript: signs in, connects, is attacked, disconnects.
//
// connect.mjs GATE OUT: GATE is the gate's URL, whose route `linear` is to be connected; screenshots go to the directory OUT. The issuers
// ask for a name in a form (oidc.mjs --form). Prints {steps: [[name, what was seen]…], errors: […]}.
import { createServer } from 'node:http';
import { join } from 'node:path';
import { chromium } from 'playwright-core';

const [gate, out] = process.argv.slice(2);
const steps = [];
const errors = [];
const step = async (name, work) => {
  try {
    steps.push([name, await work()]);
  } catch (error) {
    errors.push(`${name}: ${error.message}`);
  }
};

// Another site: what it shows is in its path.
const evil = createServer((request, response) => {
  const asked = new URL(request.url, 'http://evil.example');
  response.setHeader('content-type', 'text/html');
  if (asked.pathname === '/frame') return response.end(`<h1>Prizes</h1><iframe src="${gate}/connect" width="600" height="400"></iframe>`);
  const fields = [...asked.searchParams].map(([name, value]) => `<input type="hidden" name="${name}" value="${value}">`);
  response.end(`<form method="post" action="${gate}${asked.pathname}">${fields.join('')}<button>Win</button></form>`);
});
await new Promise((resolve) => evil.listen(0, '127.0.0.1', resolve));
const elsewhere = (host, path) => `http://${host}:${evil.address().port}${path}`;

const browser = await chromium.launch({
  executablePath: '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
const somebody = async () => {
  const context = await browser.newContext({ javaScriptEnabled: false, viewport: { width: 900, height: 700 } });
  context.setDefaultTimeout(15_000);
  return context;
};
const person = await somebody();
const page = await person.newPage();
const complaints = [];
page.on('console', (message) => {
  if (message.type() === 'error' && message.location().url.startsWith(gate)) complaints.push(message.text());
});

const heading = () => page.locator('h1').innerText();
const states = async () =>
  Object.fromEntries(
    await Promise.all((await page.locator('.card').all()).map(async (card) => [await card.locator('h2').innerText(), await card.locator('.state').innerText()])),
  );
const photograph = async (name) => {
  for (const [look, size, colorScheme] of [
    ['light', { width: 900, height: 700 }, 'light'],
    ['dark', { width: 900, height: 700 }, 'dark'],
    ['mobile', { width: 360, height: 740 }, 'light'],
  ]) {
    await page.setViewportSize(size);
    await page.emulateMedia({ colorScheme });
    await page.screenshot({ path: join(out, `${name}-${look}.png`), fullPage: true });
  }
  await page.setViewportSize({ width: 900, height: 700 });
  await page.emulateMedia({ colorScheme: 'light' });
};
const logIn = async (name) => {
  await page.getByLabel('Name').fill(name);
  await page.getByRole('button', { name: 'Log in' }).click();
  await page.waitForURL((url) => url.href.startsWith(gate));
};
const press = (name) => page.getByRole('button', { name, exact: true }).click();

try {
  await step('sent to the issuer', async () => {
    await page.goto(`${gate}/connect?route=linear`);
    return !page.url().startsWith(gate);
  });
  await step('signed in', async () => {
    await logIn('ada');
    await photograph('list');
    return [new URL(page.url()).search, await heading(), await states(), await page.locator('.who strong').innerText()];
  });
  await step('nothing scrolls sideways on a telephone', async () => {
    await page.setViewportSize({ width: 320, height: 600 });
    const [width, room] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
    await page.setViewportSize({ width: 900, height: 700 });
    return width <= room;
  });
  await step('the keyboard reaches every button and shows where it is', async () => {
    const reached = [];
    for (let i = 0; i < 3; i++) {
      await page.keyboard.press('Tab');
      reached.push(await page.evaluate(() => [document.activeElement.innerText, getComputedStyle(document.activeElement).outlineStyle]));
    }
    return reached;
  });
  await step('connected', async () => {
    await press('Connect linear');
    await page.waitForURL((url) => !url.href.startsWith(gate));
    await logIn('ada-at-linear');
    await photograph('connected');
    return [await page.getByRole('status').innerText(), await states()];
  });
  await step('framed by another site', async () => {
    await page.goto(elsewhere('127.0.0.1', '/frame'));
    await page.waitForTimeout(500);
    const frame = page.frames()[1];
    return (await frame.locator('.card').count()) === 0 && !frame.url().startsWith(gate);
  });
  for (const [what, host] of [['a sibling', '127.0.0.1'], ['another site', 'localhost']]) {
    await step(`a form of ${what}`, async () => {
      await page.goto(elsewhere(host, '/connect/disconnect?route=linear'));
      await press('Win');
      await page.waitForURL((url) => url.href.startsWith(gate));
      await photograph('foreign');
      const refused = await heading();
      await page.goto(`${gate}/connect`);
      return [refused, await states()];
    });
  }
  await step('an attacker’s link', async () => {
    const mallory = await somebody();
    const theirs = await mallory.newPage();
    await theirs.goto(`${gate}/connect`);
    await theirs.getByLabel('Name').fill('mallory');
    await theirs.getByRole('button', { name: 'Log in' }).click();
    await theirs.waitForURL((url) => url.href.startsWith(gate));
    let link;
    await theirs.route((url) => !url.href.startsWith(gate), (route) => {
      link ??= route.request().url();
      return route.abort();
    });
    await theirs.getByRole('button', { name: 'Connect linear', exact: true }).click();
    while (!link) await theirs.waitForTimeout(50);
    await mallory.close();
    await page.goto(link);
    await page.waitForURL((url) => url.href.startsWith(gate));
    return heading();
  });
  await step('connected another without typing a name again', async () => {
    await page.goto(`${gate}/connect`);
    await press('Connect notion');
    await page.waitForURL((url) => url.href.startsWith(gate) && url.searchParams.has('message'));
    return states();
  });
  await step('disconnected', async () => {
    await page.goto(`${gate}/connect`);
    await press('Disconnect linear');
    return [await page.getByRole('status').innerText(), await states()];
  });
  await step('signed out', async () => {
    await press('Sign out');
    await photograph('out');
    return [await heading(), (await person.cookies(gate)).map((cookie) => cookie.name).filter((name) => name.includes('portcullis'))];
  });
  await step('nothing was blocked on our own pages', async () => complaints.filter((text) => !/frame|status of 40[03]/.test(text)));
} finally {
  await browser.close();
  evil.close();
}

console.log(JSON.stringify({ steps, errors }));
