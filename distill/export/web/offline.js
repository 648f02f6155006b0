// Keeps the page's files, so that it opens without network, also as an installed application.

const NAME = "captions";

self.addEventListener("install", (event) => {
  const fill = async () => {
    const files = await (await fetch("files.json", { cache: "no-store" })).json();
    await (await caches.open(NAME)).addAll(files);
  };
  event.waitUntil(fill());
});

self.addEventListener("fetch", (event) => {
  const answer = async () => {
    try {
      const response = await fetch(event.request); // the newest, where there is a network
      if (response.ok && event.request.method === "GET") (await caches.open(NAME)).put(event.request, response.clone());
      return response;
    } catch (error) {
      const kept = await caches.match(event.request, { ignoreSearch: true });
      if (kept) return kept;
      throw error;
    }
  };
  event.respondWith(answer());
});
