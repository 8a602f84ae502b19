import ai.djl.Device;
import ai.djl.inference.Predictor;
import ai.djl.modality.Input;
import ai.djl.modality.Output;
import ai.djl.repository.zoo.Criteria;
import ai.djl.repository.zoo.ZooModel;
import ai.djl.translate.NoopServingTranslatorFactory;
import ai.djl.translate.TranslateException;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The workers: each hands requests from their one queue to an engine of its own, in their order. With a
 * rolling batch the engine answers at once with a stream to be filled, so that the next request can join
 * the batch.
 */
final class Worker {

    private static final Logger LOG = LoggerFactory.getLogger("Worker");

    /** Upstream WorkerThread.isStale: so long a dead worker keeps its place in the pool. */
    private static final long STALE_NANOS = TimeUnit.SECONDS.toNanos(60);

    /** One request on its way through the queue. */
    private record Job(Input input, CompletableFuture<Output> result) {}

    private final Settings settings;
    private final BlockingQueue<Job> queue = new LinkedBlockingQueue<>();
    private final ZooModel<Input, Output> model;
    private final List<Place> places = new ArrayList<>();

    Worker(Settings settings) throws Exception {
        this.settings = settings;
        LOG.info("Loading model {} from {} with {}", settings.modelName(), settings.modelUrl(), settings.options());
        model = Criteria.builder()
                .setTypes(Input.class, Output.class)
                .optModelUrls(settings.modelUrl())
                .optEngine("Python")
                .optDevice(Device.cpu())
                .optOptions(settings.options())
                .optArguments(settings.arguments())
                .optTranslatorFactory(new NoopServingTranslatorFactory())
                .build()
                .loadModel();
        model.setProperty("metric_dimension", settings.modelName());
        for (int i = 1; i <= settings.workers(); ++i) { // one after the other, as upstream's WorkerPool
            Place place = new Place(String.format("WT-%04d", i));
            place.start();
            places.add(place);
        }
    }

    /** Upstream WorkLoadManager.runJob, with its sums: the last place in the queue is only for an idle worker. */
    CompletableFuture<Output> submit(Input input) throws HttpError {
        if ("FAILED".equals(status())) {
            throw new HttpError(503, "WlmException", "Model is not ready: " + settings.modelName());
        }
        int remaining = settings.queueSize() - queue.size();
        boolean alive = places.stream().anyMatch(p -> p.alive);
        boolean busy = places.stream().allMatch(p -> p.busy || !p.alive);
        if (!alive || remaining < 1 || remaining == 1 && busy) {
            places.forEach(Place::restartIfStale);
            throw new HttpError(
                    503,
                    "WlmCapacityException",
                    "Worker queue capacity exceeded for model: " + settings.modelName());
        }
        Job job = new Job(input, new CompletableFuture<>());
        queue.add(job);
        return job.result();
    }

    /** Upstream ModelInfo.getStatus and ModelManager.workerStatus. The engine counts the failures, for all workers. */
    String status() {
        int threshold = model.intProperty("retry_threshold", settings.retryThreshold());
        if (model.intProperty("failed", 0) > threshold) {
            if (settings.failFast()) {
                System.exit(137);
            }
            return "FAILED";
        }
        return places.stream().anyMatch(p -> p.starting) ? "Unhealthy" : "Healthy";
    }

    /** One worker with its Python process. */
    private final class Place implements Runnable {
        private final String name;
        private Predictor<Input, Output> predictor;
        private volatile boolean busy;
        private volatile boolean alive;
        private volatile boolean starting;
        private volatile long diedAt;

        Place(String name) {
            this.name = name;
        }

        void start() {
            predictor = model.newPredictor(); // starts the Python process and runs the handler's first call
            alive = true;
            Thread thread = new Thread(this, name);
            thread.setDaemon(true);
            thread.start();
        }

        synchronized void restartIfStale() {
            if (alive || starting || System.nanoTime() - diedAt < STALE_NANOS) {
                return;
            }
            starting = true;
            Thread thread = new Thread(() -> {
                try {
                    start();
                } catch (RuntimeException e) {
                    LOG.error("The worker could not be started again", e);
                    diedAt = System.nanoTime();
                } finally {
                    starting = false;
                }
            });
            thread.setDaemon(true);
            thread.start();
        }

        /** Upstream WorkerThread.run: a TranslateException is one request's, anything else the worker's end. */
        @Override
        public void run() {
            while (alive) {
                Job job;
                try {
                    job = queue.take();
                } catch (InterruptedException e) {
                    return;
                }
                busy = true;
                try {
                    // A client that left while waiting costs no generation (upstream ModelThread.run).
                    job.result().complete(
                            job.input().isCancelled() ? null : predictor.batchPredict(List.of(job.input())).get(0));
                } catch (TranslateException e) {
                    LOG.warn("{}: Failed to predict", name, e);
                    job.result().completeExceptionally(HttpError.of(400, e));
                } catch (Throwable t) { // whatever it is, the client must hear of it and the worker is gone
                    LOG.error("{}: Server error", name, t);
                    alive = false;
                    diedAt = System.nanoTime();
                    predictor.close();
                    job.result().completeExceptionally(new HttpError(503, "WlmException", t.getMessage()));
                } finally {
                    busy = false;
                }
            }
        }
    }
}
