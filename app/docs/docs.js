// Shows the description of the service that this page comes from, and nothing from elsewhere.
document.documentElement.classList.toggle("dark-mode", matchMedia("(prefers-color-scheme: dark)").matches);

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#description",
  deepLinking: true, // each operation has an address
  validatorUrl: null, // it would be asked for its opinion, on the internet
  defaultModelsExpandDepth: 0,
  defaultModelExpandDepth: 3,
  displayRequestDuration: true,
});
